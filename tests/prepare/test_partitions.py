"""Folders `NAME=VALUE` are columns, on both engines, in every format, where the files do not have them."""

import datetime

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.engine import connect
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.inputs import open_inputs
from torchrec_xd.prepare.recipe import Input, Recipe
from torchrec_xd.prepare.recipe_file import RecipeFile
from torchrec_xd.prepare.tables import Tables

FIRST, SECOND = datetime.date(2024, 5, 30), datetime.date(2024, 5, 31)


def opened(engine, tmp_path, location, **settings):
    """The rows of an input, and their columns."""
    recipe = Recipe.model_construct(inputs={"logs": Input(path=location, **settings)}, views={}, root=str(tmp_path))
    tables = Tables(connect(engine, tmp_path / "spill"))
    open_inputs(tables, RecipeFile(recipe, "recipe.yaml"), {})
    found = tables.arrow(tables.connection.table("logs"))
    return found.sort_by("n").to_pylist()


def write(path, rows, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"n": rows, **changes})
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f'{{"n": {n}}}\n' for n in rows))
    else:
        pq.write_table(table, path)


@pytest.fixture(params=["duckdb", "spark"])
def engine(request):
    return EngineSettings() if request.param == "duckdb" else request.getfixturevalue("local_spark")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_folders_are_columns(tmp_path, engine, ending):
    for number, day in enumerate((FIRST, SECOND)):
        write(tmp_path / "logs" / f"day={day}" / f"hour={number + 7}" / f"a.{ending}", [number])
    for location in ("logs", f"logs/*/*/*.{ending}", f"logs/day={SECOND}"):
        if location == "logs" and ending != "parquet":
            continue  # folders of text are one deep
        if location.endswith(str(SECOND)) and ending != "parquet":
            location += f"/hour=8/a.{ending}"  # noqa: PLW2901
        expected = [{"n": 0, "day": FIRST, "hour": 7}, {"n": 1, "day": SECOND, "hour": 8}]
        assert opened(engine, tmp_path, location) == expected[1 if str(SECOND) in location else 0 :], location


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_columns_of_files_stay(tmp_path, engine, ending):
    write(tmp_path / "n=7" / f"a.{ending}", [1, 2])
    assert opened(engine, tmp_path, f"n=7/a.{ending}") == [{"n": 1}, {"n": 2}]


def test_folders_that_not_all_files_have_are_none(tmp_path, engine):
    write(tmp_path / "logs" / "day=1" / "a.parquet", [1])
    write(tmp_path / "logs" / "a.parquet", [2])
    assert opened(engine, tmp_path, "logs") == [{"n": 1}, {"n": 2}]


def test_one_of_two_folders_has_the_name_of_a_column(tmp_path):
    write(tmp_path / "day=3" / "n=7" / "a.parquet", [1])
    with pytest.raises(UserError, match=r"has a column 'n', and one of its folders has the same name, so that day "):
        opened(EngineSettings(), tmp_path, "day=3")
