"""The way of running distributed tests must itself fail when a rank fails."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.support.ranks import run_ranks


def describe(rank, factor):
    if rank == 1 and factor == 0:
        raise ZeroDivisionError(f"on rank {rank}")
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, rank * factor)
    return rank, gathered


def wait(rank):
    time.sleep(60)


def test_values_come_by_rank():
    assert run_ranks(2, describe, 10) == [(0, [0, 10]), (1, [0, 10])]


def test_a_failing_rank_is_reported_with_its_traceback(capfd):
    with pytest.raises(mp.ProcessRaisedException):
        run_ranks(2, describe, 0)
    assert "ZeroDivisionError: on rank 1" in capfd.readouterr().err


def test_ranks_that_hang_are_ended():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="wait on 1 ranks took more than 2 s"):
        run_ranks(1, wait, timeout=2)
    assert time.monotonic() - start < 20
