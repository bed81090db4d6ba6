"""A plan's estimates next to the measurements of the run that trained with it, by rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt

from torchrec_xd.errors import UserError
from torchrec_xd.planner.plan import read_plan
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.settings import Settings, validate


class RankMeasured(Settings):
    """Measurements of one rank of a run, as metrics.json holds them."""

    table_bytes: NonNegativeInt
    """Weights and optimizer state of the shards on this rank."""
    peak_memory_bytes: NonNegativeInt
    """Peak memory of the process: on a GPU as torch allocated it there, else resident memory."""
    step_ms: NonNegativeFloat | None
    """Median time of a whole step over the intervals between log lines; None if a resumed run had no step left."""


@dataclass(frozen=True)
class RankCheck:
    """Estimates and measurements of one rank."""

    rank: int
    estimated_bytes: int
    """Weights, optimizer state, the buffers of ids and vectors, and caches of tables in host memory."""
    table_bytes: int
    peak_memory_bytes: int
    estimated_lookup_ms: float
    """Lookups and updates."""
    estimated_exchange_ms: float
    step_ms: float | None

    @property
    def estimated_ms(self) -> float:
        """Lookups, updates and exchange."""
        return self.estimated_lookup_ms + self.estimated_exchange_ms

    @property
    def bytes_ratio(self) -> float | None:
        """Estimated bytes over measured bytes of tables; None if the rank holds no table."""
        return self.estimated_bytes / self.table_bytes if self.table_bytes else None

    @property
    def ms_ratio(self) -> float | None:
        """Estimated time of the embeddings over the measured time of the whole step."""
        return self.estimated_ms / self.step_ms if self.step_ms else None


def check_run(directory: Path) -> list[RankCheck]:
    """Estimates and measurements of a finished run, by rank.

    Raises:
        UserError: the folder is no finished run, or has no plan or no measurements.
    """
    folder = RunFolder(directory)
    measured = _measured(folder)
    if not folder.plan.is_file():
        raise UserError(
            f"{directory} has no {folder.plan.name}: an early version trained it; train it again to check it"
        )
    plan = read_plan(folder.plan)
    if len(measured) != plan.cluster.world_size:
        raise UserError(
            f"{directory}: {folder.metrics.name} has {len(measured)} ranks, {folder.plan.name} has "
            f"{plan.cluster.world_size}: they are not of the same run; train it again"
        )
    return [
        RankCheck(
            rank=rank,
            estimated_bytes=plan.rank_hbm[rank] + plan.rank_ddr[rank],
            estimated_lookup_ms=plan.rank_compute_ms[rank],
            estimated_exchange_ms=plan.rank_comms_ms[rank],
            **found.model_dump(),
        )
        for rank, found in enumerate(measured)
    ]


def _measured(folder: RunFolder) -> list[RankMeasured]:
    content, path = folder.read_metrics(), folder.metrics
    train = content.get("train") if isinstance(content, dict) else None
    ranks = train.get("ranks") if isinstance(train, dict) else None
    if not isinstance(ranks, list):
        raise UserError(f"{path} has no measurements of the ranks: an early version wrote it; train again to check it")
    return [validate(RankMeasured, entry, f"{path}: rank {rank}") for rank, entry in enumerate(ranks)]
