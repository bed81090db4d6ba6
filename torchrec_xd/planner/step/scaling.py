"""How far training scales: the step at growing numbers of ranks, each with a plan of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.types import ModuleSharder

from torchrec_xd.errors import UserError
from torchrec_xd.planner.api import make_plan
from torchrec_xd.planner.inputs.cluster import Cluster
from torchrec_xd.planner.inputs.settings import PlannerSettings
from torchrec_xd.planner.report.infeasible import InfeasibleError
from torchrec_xd.planner.step.counting import DenseWork
from torchrec_xd.planner.step.estimate import Precision, StepEstimate, check_precision, estimate_step

MOST_RANKS = 16_384
"""Planning for more takes minutes a size."""


@dataclass(frozen=True)
class Size:
    """A number of ranks, and the rows that each takes a step."""

    cluster: Cluster
    batch_size: int


@dataclass(frozen=True)
class ScalePoint:
    """Training at one size."""

    size: Size
    step: StepEstimate | None
    """None: the tables do not fit."""
    reason: str = ""
    """Why they do not."""
    efficiency: float | None = None
    """Rows/s per rank, compared with the smallest size that fits."""

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.size.cluster.world_size

    @property
    def rows_per_s(self) -> float | None:
        """Of all ranks."""
        return None if self.step is None else self.ranks * self.size.batch_size / self.step.step_ms * 1000

    @property
    def cost_per_million_rows(self) -> float | None:
        """In the currency of the price; None without one."""
        price, speed = self.size.cluster.price_per_hour, self.rows_per_s
        return None if price is None or speed is None else self.ranks * price / 3600 / speed * 1e6


def parse_ranks(text: str) -> list[int]:
    """`1..8` as 1, 2, 4, 8: from the first number by doubling, up to the last one.

    Raises:
        UserError: no such range.
    """
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last <= MOST_RANKS:
        raise UserError(
            f"ranks '{text}': give the smallest and the largest number of ranks as FIRST..LAST, with 1 ≤ FIRST ≤ LAST "
            f"≤ {MOST_RANKS:,}, for example 1..1024; the sizes between are found by doubling"
        )
    return [first << doubled for doubled in range((last // first).bit_length())]


def sizes(cluster: Cluster, ranks: Sequence[int], batch_size: int, global_batch: int | None = None) -> list[Size]:
    """The sizes to plan for.

    Args:
        cluster: one of its kind.
        ranks: of each size.
        batch_size: rows per rank, the same at all sizes (weak scaling).
        global_batch: rows of all ranks, the same at all sizes (strong scaling), in place of `batch_size`.

    Raises:
        UserError: nodes would be part full, or the global batch cannot be shared equally.
    """
    for count in ranks if global_batch is not None else ():
        if (global_batch or 0) % count:
            raise UserError(
                f"global batch {global_batch}: {count} ranks cannot share it equally; give a multiple of {max(ranks)}"
            )
    return [
        Size(cluster.with_changes(world_size=count), batch_size if global_batch is None else global_batch // count)
        for count in ranks
    ]


def scale(
    module: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    settings: PlannerSettings,
    sizes: Sequence[Size],
    count: Callable[[int], DenseWork],
    precision: Precision,
    reader_rows_per_s: float | None = None,
) -> list[ScalePoint]:
    """Plan and estimate a step at every size; one that does not fit is a point without a step.

    Args:
        module: as for `make_plan`.
        sharders: as for `make_plan`.
        settings: as for `make_plan`; the sizes have their own batch size.
        sizes: smallest first.
        count: from rows of a batch to the dense part of its step.
        precision: of matrix products.
        reader_rows_per_s: what one rank reads. Default: reading costs nothing.

    Raises:
        UserError: the cluster has no TFLOP/s for the precision, or constraints that match nothing or leave nothing.
    """
    check_precision(sizes[0].cluster, precision)
    works = {rows: count(rows) for rows in dict.fromkeys(size.batch_size for size in sizes)}
    points: list[ScalePoint] = []
    base: ScalePoint | None = None
    for size in sizes:
        try:
            here = settings.model_copy(update={"batch_size": size.batch_size})
            planning = make_plan(module, sharders, size.cluster, here)
        except InfeasibleError as error:
            points.append(ScalePoint(size, None, str(error)))
            continue
        step = estimate_step(planning.plan, works[size.batch_size], precision, reader_rows_per_s)
        point = ScalePoint(size, step)
        base = base or point
        points.append(ScalePoint(size, step, efficiency=_per_rank(point) / _per_rank(base)))
    return points


def _per_rank(point: ScalePoint) -> float:
    return (point.rows_per_s or 0.0) / point.ranks
