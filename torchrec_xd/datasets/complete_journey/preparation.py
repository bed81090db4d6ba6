"""`prepare`: a data set of the Complete Journey, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrec_xd.datasets.complete_journey import departments, feed, placements
from torchrec_xd.datasets.complete_journey.journey import PROVENANCE, Journey, load, raw_files, raw_folder
from torchrec_xd.datasets.complete_journey.settings import PrepareSettings
from torchrec_xd.datasets.interest_labels.report import FILES, labelled_rows, write_label_report
from torchrec_xd.datasets.pipeline.dataset import SPLITS, DataSet
from torchrec_xd.datasets.pipeline.parquet import write_domain
from torchrec_xd.errors import UserError
from torchrec_xd.prepare import manifest
from torchrec_xd.prepare.engine import connect, count_rows, engine_errors
from torchrec_xd.prepare.manifest import Manifest

DATA_SETS: dict[str, Callable[[Journey, PrepareSettings], DataSet]] = {
    "cj_feed": feed.build,
    "cj_departments": departments.build,
    "cj_placement": placements.build,
}
"""What `prepare` can make."""


def prepare(
    name: str, out: Path, settings: PrepareSettings, progress: Callable[[str], None], raw: Path | None = None
) -> Manifest:
    """Write a data set: `out/<domain>/<split>/*.parquet` and `out/manifest.json`.

    `out` is complete or untouched, whatever happens meanwhile. A data set that lies there already is reused where
    inputs, settings and code are the same, and replaced where they are not.

    Args:
        name: key of `DATA_SETS`.
        out: folder.
        settings: how.
        progress: called with a line of text for every step.
        raw: folder of the raw Parquet files; Default: that of the installed package.

    Raises:
        UserError: unknown name, raw data missing, engine missing, or `out` holds anything else.
    """
    if name not in DATA_SETS:
        known = f"{', '.join(DATA_SETS)}, and planted worlds: prepare world --preset NAME"
        raise UserError(f"unknown data set '{name}'; there are: {known}")
    files = raw_files(raw or raw_folder())
    identity = manifest.identity(name, settings.meaning(), files)
    old = manifest.reusable(out, identity)
    if old is not None:
        progress(f"{out}: prepared before, from the same inputs with the same settings; reused")
        return old
    with manifest.replaced(out) as folder, engine_errors():
        connection = connect(settings.chosen(), spill=folder.parent / "spill")
        journey = load(connection, files)
        progress("raw data: read")
        data_set = DATA_SETS[name](journey, settings)
        progress("facts: computed")
        written = {
            key: write_domain(key, domain, folder, settings, progress) for key, domain in data_set.domains.items()
        }
        made = Manifest(
            identity=identity,
            provenance=PROVENANCE,
            notes=data_set.notes,
            dropped=dict(journey.dropped),
            sampling=dict(data_set.sampling),
            cardinalities={key: count_rows(words) for key, words in data_set.vocabularies.items()},
            domains=written,
            reports=_report(connection, data_set, folder, progress),
            versions=manifest.versions(settings.engine),
        )
        (folder / manifest.NAME).write_text(made.model_dump_json(indent=1), encoding="utf-8")
    return made


def _report(connection: Any, data_set: DataSet, folder: Path, progress: Callable[[str], None]) -> tuple[str, ...]:
    """Write the label report, where the data set has one; returns its files."""
    report = data_set.report
    if report is None:
        return ()
    splits = tuple(split for split in SPLITS if (folder / report.domain / split).is_dir())
    rows = labelled_rows(connection, folder / report.domain, splits)
    progress(write_label_report(rows, report, folder, "Interest combination labels"))
    return FILES
