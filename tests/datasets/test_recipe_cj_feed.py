"""`configs/recipes/cj_feed.yaml` makes the rows of `prepare cj_feed`: every column whose ids are not learnt."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets import PrepareSettings, prepare
from torchrec_xd.datasets.complete_journey.journey import raw_folder
from torchrec_xd.prepare.api import prepare_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROWS = {
    "product": {"train": 1_302_390, "valid": 577_702, "test": 614_135},
    "coupon": {"train": 305_575, "valid": 234_129, "test": 260_495},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, request):
    """Of the data set, and of what the recipe makes."""
    if not request.config.getoption("--all-rows"):
        pytest.skip("prepares 3.3 million rows twice, for 10 minutes and more; pytest --all-rows runs it")
    root = tmp_path_factory.mktemp("cj")
    prepare("cj_feed", root / "code", PrepareSettings(), str)
    recipe = ROOT / "configs" / "recipes" / "cj_feed.yaml"
    prepare_recipe(recipe, root / "recipe", str, assignments=[f"root={raw_folder()}"])
    return root / "code", root / "recipe"


@pytest.mark.parametrize("domain", ROWS)
def test_rows_are_equal(folders, domain):
    schema = load_schema(folders[1] / "schema.yaml")
    tables = {path.stem for path in (folders[1] / "encoders").glob("*.parquet")}
    learnt = {each.column for each in schema.features if (each.table or each.column) in tables}
    plain = [each.column for each in schema.features_of(domain) if each.column not in learnt]
    assert len(plain) > 30
    label = {"product": "bought", "coupon": "redeemed"}[domain]
    columns = ", ".join(f"CAST({name} AS FLOAT)" for name in ("household", label, "weight", "activity", *plain))
    for split, count in ROWS[domain].items():
        code, recipe = (folder / domain / split / "*.parquet" for folder in folders)
        made = f"(SELECT *, \"user\" AS household FROM '{recipe}')"
        one, two = (f"SELECT {columns} FROM {source}" for source in (f"'{code}'", made))
        assert duckdb.sql(f"SELECT count(*) FROM ({two})").fetchall() == [(count,)]
        assert duckdb.sql(f"SELECT * FROM ({one} EXCEPT ALL {two}) LIMIT 3").fetchall() == []
