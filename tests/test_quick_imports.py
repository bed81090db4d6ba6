"""Imports without the garbage collector: afterwards it collects again, and what was there stays out of its way."""

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from torchrec_xd.cli.quick_imports import quick_imports


class Node:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not imported torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("without_torch")
def test_the_collector_rests_within_and_works_afterwards() -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    node = weakref.ref(Node())
    gc.collect()
    assert node() is None


@pytest.mark.usefixtures("without_torch")
def test_the_collector_works_again_after_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()


def test_with_torch_there_is_nothing_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
