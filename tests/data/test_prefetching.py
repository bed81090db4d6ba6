"""Reading ahead: threads, windows and queues, and how they end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.numbered import content, write
from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.loader import Loader, LoaderSettings, _WindowReader
from torchrec_xd.data.rows import Rows
from torchrec_xd.data.shards import ShardSpec, Window


def all_loader_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("loader")}


@pytest.fixture
def loader_threads() -> Any:
    """Lists the reading threads that the test started; an earlier one's may still wait for the garbage collector."""
    before = all_loader_threads()
    return lambda: [thread.name for thread in all_loader_threads() - before]


def stop_by_closing(batches: Iterator[Batch]) -> None:
    next(batches)
    batches.close()


def stop_by_dropping(batches: Iterator[Batch]) -> None:
    next(batches)


def stop_by_an_exception(batches: Iterator[Batch]) -> None:
    def consume() -> None:
        for batch in batches:
            assert 1 / (len(batch) - 10)

    with pytest.raises(ZeroDivisionError):
        consume()


def stop_at_the_end(batches: Iterator[Batch]) -> None:
    assert len(list(batches)) == 100


@pytest.mark.parametrize("stop", [stop_by_closing, stop_by_dropping, stop_by_an_exception, stop_at_the_end])
def test_no_thread_and_no_window_outlives_its_consumer(root: Path, stop: Any, loader_threads: Any) -> None:
    schema, _ = write(root, [[[500, 500]]])
    loader = Loader(schema, LoaderSettings(batch_size=10, shuffle_rows=50), "train")
    assert loader_threads() == []
    batches = loader.batches()
    assert loader_threads() == []
    gc.collect()
    gc.disable()  # what is left must go by itself, not when the collector comes round
    try:
        stop(batches)
        del batches
        assert loader_threads() == []
        assert not [thing for thing in gc.get_objects() if type(thing) is Rows and len(thing)]
    finally:
        gc.enable()


def test_what_the_thread_raises_is_raised_in_the_consumer(
    root: Path, monkeypatch: pytest.MonkeyPatch, loader_threads: Any
) -> None:
    schema, _ = write(root, [[[30]]])
    loader = Loader(schema, LoaderSettings(batch_size=10), "train")
    collate = loader.collate

    def failing(parts: Any, position: LoaderState) -> Batch:
        if position.step == 3:
            raise KeyboardInterrupt("not even an Exception")
        return collate(parts, position)

    monkeypatch.setattr(loader, "collate", failing)
    batches = loader.batches()
    assert [next(batches).position.step for _ in range(2)] == [1, 2]
    with pytest.raises(KeyboardInterrupt, match="not even an Exception"):
        next(batches)
    assert loader_threads() == []
    assert list(batches) == []


def test_the_queue_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, _ = write(root, [[[10] * 100]])
    loader = Loader(schema, LoaderSettings(batch_size=10, shuffle_rows=10, prefetch=2), "train")
    made: list[LoaderState] = []
    collate = loader.collate

    def noted(parts: Any, position: LoaderState) -> Batch:
        made.append(position)
        return collate(parts, position)

    monkeypatch.setattr(loader, "collate", noted)
    batches = loader.batches()
    for done in (1, 2, 3):
        next(batches)
        time.sleep(0.1)
        assert done <= len(made) <= done + 2
    batches.close()


def test_two_readers_of_one_loader_do_not_disturb_each_other(root: Path) -> None:
    schema, _ = write(root, [[[100] * 3]])
    loader = Loader(schema, LoaderSettings(batch_size=30, shuffle_rows=70), "train")
    alone = [content(batch) for batch in loader.batches()]
    pairs = list(zip(loader.batches(), loader.batches(), strict=True))
    assert [content(a) for a, _ in pairs] == [content(b) for _, b in pairs] == alone


def test_the_next_window_is_read_ahead_and_the_one_after_it_is_not(root: Path, read: list[int]) -> None:
    schema, _ = write(root, [[[100] * 5]])
    loader = Loader(
        schema, LoaderSettings(batch_size=10, shuffle_rows=100, prefetch=1), "train", ShardSpec(shuffle=False)
    )
    batches = loader.batches()
    next(batches)
    late = time.monotonic() + 10
    while len(read) < 2 and time.monotonic() < late:
        time.sleep(0.01)
    time.sleep(0.1)
    assert read == [0, 1]
    batches.close()


def test_a_row_group_larger_than_the_window_is_read_once(root: Path, read: list[int]) -> None:
    schema, _ = write(root, [[[100, 60]]])
    assert len(list(Loader(schema, LoaderSettings(batch_size=16, shuffle_rows=7), "train").batches())) == 10
    assert sorted(read) == [0, 1]


def test_batches_own_their_memory(root: Path) -> None:
    schema, _ = write(root, [[[40]]])
    for shuffle in (True, False):
        batches = Loader(schema, LoaderSettings(batch_size=20), "train", ShardSpec(shuffle=shuffle)).batches()
        first = next(batches)
        for part in (
            first.user_B,
            first.weight_B,
            first.bags.values(),
            first.bags.lengths(),
            first.sequences.lengths(),
        ):
            part.fill_(7)
        second = next(batches)
        assert set(second.user_B.tolist()) != {7}
        assert second.weight_B.tolist() == [1.0] * 20
        assert second.bags.lengths().tolist() == [1] * 20


def test_the_reading_thread_pins_what_goes_to_a_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that models read and no other, and not in the thread that trains."""
    schema, _ = write(root, [[[30]]])
    loader = Loader(schema, LoaderSettings(batch_size=10), "train")
    pinned: list[tuple[int, str]] = []

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append((id(tensor), threading.current_thread().name))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", noted)
    batches = list(loader.batches())
    assert pinned == []
    batches = list(loader.batches(pin=True))
    parts = [(b.dense_BN, b.vector_BV, b.label_BT, b.weight_B) for b in batches]
    ids = [(kjt.values(), kjt.lengths()) for b in batches for kjt in (b.bags, b.weighted_bags, b.sequences)]
    assert {id(tensor) for tensors in (*parts, *ids) for tensor in tensors} == {tensor for tensor, _ in pinned}
    assert {name for _, name in pinned} == {"loader"}


@pytest.mark.parametrize("start", [LoaderState(0, 0), LoaderState(0, 3)], ids=["from the start", "amid a window"])
def test_the_first_windows_of_all_domains_are_read_beside_one_another(
    root: Path, monkeypatch: pytest.MonkeyPatch, start: LoaderState
) -> None:
    schema, _ = write(root, [[[100]], [[100]], [[100]]])
    loader = Loader(schema, LoaderSettings(batch_size=30, shuffle_rows=100), "train")
    expected = content(list(loader.batches())[start.step])
    together = threading.Barrier(3, timeout=30)  # broken where a domain waits for the window of another
    read = _WindowReader.read

    def waiting(reader: _WindowReader, window: Window) -> list[Rows]:
        together.wait()
        return read(reader, window)

    monkeypatch.setattr(_WindowReader, "read", waiting)
    batches = loader.batches(start)
    assert content(next(batches)) == expected
    batches.close()
