"""`torchrec-xd label`: interest combination labels for any exposures and logs of actions, Parquet in, Parquet out."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ibis
from ibis.expr.types import Table
from pydantic import Field, model_validator

from torchrec_xd.datasets.interest_labels.doubts import doubts
from torchrec_xd.datasets.interest_labels.labels import LabelColumns, LabelSettings, fit, interest_labels
from torchrec_xd.datasets.interest_labels.report import label_counts, write_label_report
from torchrec_xd.datasets.interest_labels.tables import END, Column, Log, staged_types, write_labelled
from torchrec_xd.datasets.pipeline.dataset import LabelReport
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.engine import connect, engine_errors
from torchrec_xd.prepare.engine_settings import DataSetEngineSettings
from torchrec_xd.prepare.manifest import replaced
from torchrec_xd.settings import Settings

FOLDER = "labelled"
"""Where the labelled files lie below `out`."""
PARTS = ("wanted", "fit")
ROW = "file_row_number"
"""DuckDB's name for the number of a row in its file."""


class ColumnSettings(Settings):
    """Columns that exposures and actions share. Each role has a column of its own."""

    user: str
    """Column of the user. Null is nobody."""
    item: str
    """Column of the item. Null is nothing."""
    category: str
    """Column of the item's category. Null is unknown, and fits nothing."""
    time: str
    """Whole numbers, in the unit of `labels.window`."""
    groups: tuple[str, ...] = ()
    """Column whose values are groups of users, null being one of them. Default: one group of all."""
    until: str | None = None
    """Of exposures alone: actions from this time on are unknown to the row's label (the end of its split)."""


class LabelStepSettings(DataSetEngineSettings):
    """Where the logs lie, what their columns mean, and how interests are labelled."""

    exposures: str
    """Parquet file, folder or glob: rows of the target domain. Paths start at the working directory."""
    acted: str
    """Their column of `y_t`, 0 or 1."""
    target: str
    """Parquet file, folder or glob: actions in the target domain."""
    sources: dict[str, str] = Field(min_length=1)
    """Source domain -> its actions."""
    columns: ColumnSettings
    labels: LabelSettings = LabelSettings()
    report_by: tuple[str, ...] = ()
    """Columns of exposures by which the report counts labels, besides the groups."""

    @model_validator(mode="after")
    def _check(self) -> LabelStepSettings:
        if self.engine != "duckdb":
            raise ValueError(
                f"'label' cannot use engine: {self.engine}, which does not keep files and the order of rows; "
                "use engine: duckdb, which spills to disk"
            )
        single = ("user", "item", "category", "time", "until")
        roles = [(f"columns.{role}", getattr(self.columns, role)) for role in single]
        groups = [("columns.groups", name) for name in self.columns.groups]
        _check_columns([*roles, *groups, ("acted", self.acted)])
        _check_columns([*groups, *(("report_by", name) for name in self.report_by)])
        for source in self.sources:
            if not source or "." in source:
                raise ValueError(f"source '{source}' is part of a label's name, which is not empty and has no dot")
        if len({source.lower() for source in self.sources}) < len(self.sources):
            raise ValueError(f"sources {', '.join(self.sources)}: some differ in case only, and so would their columns")
        return self


def _check_columns(roles: Sequence[tuple[str, str | None]]) -> None:
    """No column may stand in two roles."""
    for name, count in Counter(name for _, name in roles if name is not None).items():
        if count > 1:
            settings = " and ".join(setting for setting, other in roles if other == name)
            raise ValueError(f"column '{name}' is in {settings}; each has its own: correct one, or copy the column")


def label(settings: LabelStepSettings, out: Path, progress: Callable[[str], None]) -> None:
    """Write exposures plus columns `wanted_<source>` and `fit_<source>`, 0 or 1, int8, and the label report.

    Every file of exposures becomes one below `out/labelled`, of the same name, with its rows in their order and all of
    its columns. `out` is complete or untouched.

    Args:
        settings: logs, columns and rules.
        out: folder to write.
        progress: takes lines for the screen: the first table of the report, and warnings.

    Raises:
        UserError: `out` exists, a file is missing or unreadable, or a column is missing, or of a type, a kind or a
            value that its meaning does not allow.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; name another folder, or delete it yourself")
    logs = _logs(settings)
    types = staged_types(logs)
    with replaced(out) as folder, engine_errors(), _disk_errors(out):
        scratch, labels = folder.parent, folder.parent / "labels.parquet"
        connection = connect(settings.chosen(), spill=scratch / "spill")
        tables = []
        for place, log in enumerate(logs):
            if not log.stage(scratch / f"{place}.parquet", types) and not place:
                raise UserError(f"exposures: {log.location} holds no rows; there is nothing to label")
            tables.append(_read(connection, scratch / f"{place}.parquet", file_row_number=True))
        connection.to_parquet(_labelled(settings, tables).order_by(ROW), labels)
        added = {f"{part}_{place}": f"{part}_{name}" for place, name in enumerate(settings.sources) for part in PARTS}
        write_labelled(logs[0], labels, added, folder / FOLDER)
        for line in _report(settings, _read(connection, labels), tables, folder):
            progress(line)


def _read(connection: Any, path: Path, **options: Any) -> Table:
    return connection.read_parquet(glob.escape(str(path)), **options)


def _labelled(settings: LabelStepSettings, tables: Sequence[Table]) -> Table:
    """Exposures plus `wanted_0`, `fit_0` … of the sources in their order."""
    exposures, target, *actions = tables
    if settings.columns.until is None:
        exposures = exposures.mutate(until=ibis.literal(END, "int64"))
    sources = {str(place): table for place, table in enumerate(actions)}
    scenes = tuple(f"scene_{place}" for place in range(len(settings.columns.groups)))
    columns = LabelColumns("user", "item", "category", "time", "until", scenes)
    labelled = interest_labels(exposures, target, sources, columns, settings.labels)
    return labelled.mutate(**{f"fit_{place}": fit(place, settings.labels.consistency) for place in sources})


def _report(settings: LabelStepSettings, rows: Table, tables: Sequence[Table], folder: Path) -> Iterator[str]:
    """Writes the label report; its first table and warnings."""
    rows = rows.mutate(all=ibis.literal("all rows"))
    scenes = ((name, f"scene_{place}") for place, name in enumerate(settings.columns.groups))
    others = ((name, f"by_{place}") for place, name in enumerate(settings.report_by))
    report = LabelReport(
        domain="",
        acted="acted",
        sources={name: (f"wanted_{place}", f"fit_{place}") for place, name in enumerate(settings.sources)},
        by=(("all", "all"), *scenes, *others),
    )
    yield write_label_report(rows, report, folder, f"Interest combination labels of {settings.exposures}")
    [counts] = label_counts(rows, report, rows["all"])
    actions = dict(zip(settings.sources, tables[2:], strict=True))
    for doubt in doubts(counts, rows, actions, settings.labels.window, settings.columns.model_dump()):
        yield f"warning: {doubt}"


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error}); make room, or name another folder") from None


def _logs(settings: LabelStepSettings) -> list[Log]:
    """Exposures, target and sources, each with the columns that it needs."""
    names = settings.columns
    shared = [
        *(Column(getattr(names, key), f"columns.{key}", "key", key) for key in ("user", "item", "category")),
        Column(names.time, "columns.time", "time", "time"),
        *(Column(name, "columns.groups", "key", f"scene_{place}") for place, name in enumerate(names.groups)),
    ]
    own = [Column(settings.acted, "acted", "acted", "acted")]
    own += [Column(names.until, "columns.until", "until", "until")] if names.until is not None else []
    own += [Column(name, "report_by", "heading", f"by_{place}") for place, name in enumerate(settings.report_by)]
    exposures = Log("exposures", settings.exposures, [*shared, *own])
    for file, schema in exposures.schemas.items():
        _check_names(file, schema.names, settings.sources)
    target = Log("target", settings.target, shared)
    return [exposures, target, *(Log(f"sources.{name}", path, shared) for name, path in settings.sources.items())]


def _check_names(file: str, names: Sequence[str], sources: Iterable[str]) -> None:
    """Whether the columns of exposures can be written next to those that are added."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"exposures: {file} has column '{name}' {count} times; rename or drop one")
    there = {name.lower(): name for name in names}
    for added in (f"{part}_{source}" for source in sources for part in PARTS):
        if added.lower() in there:
            raise UserError(
                f"exposures: {file} has a column '{there[added.lower()]}', and 'label' adds '{added}'; "
                "rename or drop the column, or rename the source"
            )
