"""`torchrec-xd label`: interest combination labels for any exposures and logs of actions, Parquet in, Parquet out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
from ibis.expr.types import Table
from pydantic import Field

from torchrec_xd.datasets.interest_labels.labels import LabelColumns, LabelSettings, fit, interest_labels
from torchrec_xd.datasets.interest_labels.report import write_label_report
from torchrec_xd.datasets.pipeline.dataset import LabelReport
from torchrec_xd.datasets.pipeline.engine import EngineSettings, connect, interruptible
from torchrec_xd.datasets.pipeline.manifest import replaced
from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings

END = 2**62


class ColumnSettings(Settings):
    """Columns that exposures and actions share."""

    user: str
    """Column of the user."""
    item: str
    """Column of the item."""
    category: str
    """Column of the item's category."""
    time: str
    """Whole numbers, in the unit of `labels.window`."""
    groups: tuple[str, ...] = ()
    """Column whose values are groups of users. Default: one group of all."""
    until: str | None = None
    """Of exposures alone: actions from this time on are unknown to the row's label (the end of its split)."""


class LabelStepSettings(EngineSettings):
    """Where the logs lie, what their columns mean, and how interests are labelled."""

    exposures: str
    """Parquet file or glob: rows of the target domain."""
    acted: str
    """Their column of `y_t`, 0 or 1."""
    target: str
    """Parquet file or glob: actions in the target domain."""
    sources: dict[str, str] = Field(min_length=1)
    """Source domain -> its actions."""
    columns: ColumnSettings
    labels: LabelSettings = LabelSettings()
    report_by: tuple[str, ...] = ()
    """Columns of exposures by which the report counts labels, besides the groups."""


def label(settings: LabelStepSettings, out: Path, progress: Callable[[str], None]) -> None:
    """Write `out/labelled.parquet` (exposures plus `wanted_<source>` and `fit_<source>`, 0 or 1) and the label report.

    `out` is complete or untouched. The order of rows is not that of the input.

    Raises:
        UserError: `out` exists, a file is missing or unreadable, or a column is.
    """
    if out.exists():
        raise UserError(f"--out {out} exists; name another folder, or delete it yourself")
    with replaced(out) as folder, interruptible():
        _label(settings, folder, progress)


def _label(settings: LabelStepSettings, folder: Path, progress: Callable[[str], None]) -> None:
    connection = connect(settings, spill=folder.parent / "spill")
    names = settings.columns
    shared = [names.user, names.item, names.category, names.time, *names.groups]
    exposures = _read(connection, settings.exposures, "exposures", [*shared, settings.acted, *settings.report_by])
    if names.until is None:
        exposures = exposures.mutate(_until=ibis.literal(END))
    elif names.until not in exposures.columns:
        raise UserError(_missing("exposures", settings.exposures, names.until, exposures))
    target = _read(connection, settings.target, "target", shared)
    sources = {name: _read(connection, path, f"sources.{name}", shared) for name, path in settings.sources.items()}
    columns = LabelColumns(names.user, names.item, names.category, names.time, names.until or "_until", names.groups)
    labelled = interest_labels(exposures, target, sources, columns, settings.labels)
    labelled = labelled.mutate(**{f"fit_{name}": fit(name, settings.labels.consistency) for name in sources})
    written = [name for name in exposures.columns if name != "_until"]
    written += [f"{part}_{name}" for name in sources for part in ("wanted", "fit")]
    path = folder / "labelled.parquet"
    connection.to_parquet(labelled.select(written), path)
    rows = connection.read_parquet(path)
    report = LabelReport(
        domain="",
        acted=settings.acted,
        sources={name: (f"wanted_{name}", f"fit_{name}") for name in sources},
        by=("all", *names.groups, *settings.report_by),
    )
    rows = rows.mutate(all=ibis.literal("all rows"))
    progress(write_label_report(rows, report, folder, f"Interest combination labels of {settings.exposures}"))


def _read(connection: Any, path: str, key: str, columns: list[str]) -> Table:
    try:
        table = connection.read_parquet(path)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be read as Parquet: {error}") from None
    for column in columns:
        if column not in table.columns:
            raise UserError(_missing(key, path, column, table))
    return table


def _missing(key: str, path: str, column: str, table: Table) -> str:
    return f"{key}: {path} has no column '{column}'; it has: {', '.join(table.columns)}"
