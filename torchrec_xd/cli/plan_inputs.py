"""What several commands of `torchrec-xd plan` read."""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchrec_xd.table_types import PlannedDtype, TableOptimizer

if TYPE_CHECKING:
    from torchrec_xd.planner import Cluster

ClusterOption = Annotated[str, typer.Option(help="A shipped profile (`config list`, clusters/), or a path.")]
WorldSize = Annotated[int | None, typer.Option(help="Number of ranks. Default: the profile's.")]
RanksPerNode = Annotated[int | None, typer.Option(help="Ranks per node. Default: the profile's.")]
Hbm = Annotated[float | None, typer.Option(help="GPU memory per rank, GiB.")]
Ddr = Annotated[float | None, typer.Option(help="Host memory per rank, GiB.")]
Intra = Annotated[float | None, typer.Option(help="Bandwidth inside a node, GiB/s per rank.")]
Inter = Annotated[float | None, typer.Option(help="Bandwidth between nodes, GiB/s per rank.")]
Reservation = Annotated[float | None, typer.Option(help="Part of the memory kept free of tables, 0 to 1.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples per rank and step. Default: the config's, else 512.")]
Weights = Annotated[PlannedDtype | None, typer.Option(help="Weight type. Default: the config's, else fp32.")]
Optimizer = Annotated[TableOptimizer | None, typer.Option(help="Default: the config's, else rowwise_adagrad.")]
Pooling = Annotated[Path | None, typer.Option(help="YAML, feature: mean ids per sample.")]
MeasurePooling = Annotated[
    bool, typer.Option("--measure-pooling", help="Measure mean ids per sample in the config's training files.")
]
Constraints = Annotated[Path | None, typer.Option(help="YAML with 'constraints': pins, bans, co-locations.")]
Effort = Annotated[int | None, typer.Option(help="Consecutive non-improving iterations after which the search ends.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write a summary (JSON).")]


@contextmanager
def quiet_torchrec() -> Iterator[None]:
    """Silence torchrec's warnings about defaults of its own planner, which are not used."""
    import logging

    logger = logging.getLogger("torchrec")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def chosen_cluster(name: str, **changes: Any) -> Cluster:
    """A profile, and what options change in it.

    Raises:
        UserError: there is no such profile, or a value breaks a rule.
    """
    from torchrec_xd.planner import load_cluster
    from torchrec_xd.shipped import CLUSTERS

    return load_cluster(name, CLUSTERS).with_changes(**changes)
