"""Imports without the garbage collector: afterwards it collects again, and what was there stays out of its way."""

import gc
import weakref

import pytest

from torchrec_xd.cli.quick_imports import quick_imports


class Node:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _unfrozen():
    yield
    gc.unfreeze()


def test_the_collector_rests_within_and_works_afterwards() -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    node = weakref.ref(Node())
    gc.collect()
    assert node() is None


def test_the_collector_works_again_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
