"""A plan's estimates beside what the run that trained under it measured, rank by rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt

from torchrec_xd.errors import UserError
from torchrec_xd.planner.plan import read_plan
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.settings import Settings, validate


class RankMeasured(Settings):
    """What one rank of a run measured, as metrics.json says it."""

    table_bytes: NonNegativeInt
    """Weights and optimizer state of the shards on this rank."""
    peak_memory_bytes: NonNegativeInt
    """Most that the process held: on a GPU what torch allocated there, else resident memory."""
    step_ms: NonNegativeFloat | None
    """Of a whole step; the median over the intervals between log steps. None where a resumed run had no step left."""


@dataclass(frozen=True)
class RankCheck:
    """One rank as estimated by the plan and as measured by the run."""

    rank: int
    estimated_bytes: int
    """Tables, optimizer state, and the buffers of ids and vectors."""
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
        """Estimated over measured bytes of tables; None where the rank holds none."""
        return self.estimated_bytes / self.table_bytes if self.table_bytes else None

    @property
    def ms_ratio(self) -> float | None:
        """Estimated time of the embeddings over the measured whole step."""
        return self.estimated_ms / self.step_ms if self.step_ms else None


def check_run(directory: Path) -> list[RankCheck]:
    """Estimates and measurements of a finished run, by rank.

    Raises:
        UserError: the folder is no finished run, or holds no plan or no measurements.
    """
    folder = RunFolder(directory)
    measured = _measured(folder)
    if not folder.plan.is_file():
        raise UserError(
            f"{directory} holds no {folder.plan.name}: it was trained before runs kept their plan; train it again"
        )
    plan = read_plan(folder.plan)
    if len(measured) != plan.cluster.world_size:
        raise UserError(f"{directory}: {len(measured)} ranks were measured, {plan.cluster.world_size} planned")
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
        raise UserError(f"{path} says nothing of ranks: it was written before runs measured them; train again")
    return [validate(RankMeasured, entry, f"{path}: rank {rank}") for rank, entry in enumerate(ranks)]
