"""The profile of a data set: of one that `prepare` wrote, or of any Parquet files with a schema."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.prepare import manifest, schema_file
from torchrec_xd.prepare.encoders import RECIPE, encoders_folder
from torchrec_xd.prepare.engine import connect
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.profile.measure import SAMPLE_ROWS, measure
from torchrec_xd.prepare.profile.page import save_profile_page
from torchrec_xd.prepare.profile.result import Profile
from torchrec_xd.prepare.recipe_file import load_recipe
from torchrec_xd.schema import Schema

NAME = "profile.html"


def profile_data(
    place: Path,
    out: Path,
    progress: Callable[[str], None],
    *,
    sample_rows: int = SAMPLE_ROWS,
    engine: EngineSettings | None = None,
) -> Profile:
    """Write the profile of a data set as a page.

    Args:
        place: a schema file, or the folder of a data set that `prepare` wrote, wherever it lies now.
        out: the page.
        progress: called with a line of text for every step.
        sample_rows: rows of each domain and split for what would take too long in all.
        engine: memory and threads of DuckDB; Spark is not used.

    Raises:
        UserError: there is no schema; files or columns are missing or not as it says.
    """
    path = place / schema_file.NAME if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a schema file, or the folder of a prepared data set")
    schema = load_schema(path)
    if place.is_dir() and (place / manifest.NAME).is_file():
        schema = schema.model_copy(update={"root": str(place)})
    recipe = encoders_folder(path.parent) / RECIPE
    calendar = load_recipe(recipe).recipe.calendar_features() if recipe.is_file() else ()
    return write_profile(schema, out, progress, calendar=calendar, sample_rows=sample_rows, engine=engine)


def write_profile(
    schema: Schema,
    out: Path,
    progress: Callable[[str], None],
    *,
    calendar: Collection[str] = (),
    sample_rows: int = SAMPLE_ROWS,
    engine: EngineSettings | None = None,
    check: bool = True,
) -> Profile:
    """Measure a data set with DuckDB and write the page; see `profile_data`.

    Args:
        schema: of the data set.
        out: the page.
        progress: called with a line of text for every step, and for every finding.
        calendar: features that are parts of the row's time.
        sample_rows: rows of each domain and split for what would take too long in all.
        engine: memory and threads of DuckDB; Spark is not used.
        check: whether columns are checked first, as training does.
    """
    settings = EngineSettings(duckdb=engine.duckdb if engine else None)
    with tempfile.TemporaryDirectory(prefix=".profile.", dir=out.parent) as spill:
        connection = connect(settings, spill=Path(spill))
        profile = measure(connection, schema, progress, calendar=calendar, sample_rows=sample_rows, check=check)
        connection.disconnect()
    save_profile_page(profile, out)
    for finding in profile.findings:
        progress(f"{'warning' if finding.severity != 'note' else 'note'}: {finding}")
    return profile
