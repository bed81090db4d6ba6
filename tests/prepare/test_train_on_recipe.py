"""The schema that `prepare` writes loads, and a model trains on its rows."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.raw_shop import EVERY_KIND, prepare, recipe, views, write_shop
from torchrec_xd.config import load_config
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.errors import UserError
from torchrec_xd.shipped import CONFIGS
from torchrec_xd.training.inference import evaluate, score, score_raw
from torchrec_xd.training.train_run import train

SMALL = ["trainer.threads=1", "trainer.epochs=1", "loader.batch_size=64"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = write_shop(tmp_path_factory.mktemp("shop"))
    content = recipe(folder, *EVERY_KIND, events={"shown": {"rows": "views", "user": "user_id", "time": "ts"}})
    content["domains"]["goods"] |= {"labels": {"click": "clicked", "buy": "bought"}, "nullable": ["buy"]}
    content["domains"]["goods"]["keep_negatives"] = 0.9
    return prepare(folder, content)


def test_the_schema_says_what_was_written(out):
    schema = load_schema(out / "schema.yaml")
    rows = {feature.column: feature.rows for feature in schema.features}
    assert (rows["item"], rows["clicked_items"], rows["category_edges"], rows["as_is"]) == (6, 6, 4, 7)
    assert (rows["hour"], rows["hour_of_week"], rows["hashed"]) == (25, 169, 50)
    assert schema.weight == "weight"
    assert {task.name: task.nullable for task in schema.tasks} == {
        "click@goods": False,
        "buy@goods": True,
        "like@videos": False,
    }


@pytest.fixture(scope="module")
def run(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = load_config(CONFIGS / "base" / "mmoe.yaml", SMALL, out / "schema.yaml")
    train(config, folder)
    return folder


def test_a_model_trains_on_it(run):
    found = json.loads((run / "metrics.json").read_text())["eval"]
    assert set(found) == {"click@goods", "buy@goods", "like@videos"}
    assert all(0 < each["logloss"] < 3 for each in found.values())


def test_raw_rows_get_the_scores_of_prepared_ones(out, run, tmp_path):
    score(run, out / "goods" / "test", tmp_path / "prepared.parquet", "goods", keep=["n"])
    raw = pq.read_table(out.parent / "views.parquet").drop_columns(["clicked", "bought"])
    pq.write_table(raw, tmp_path / "raw.parquet")
    known = set(pq.read_table(out / "encoders" / "item.parquet")["value"].to_pylist())
    said = []
    count = score_raw(run, str(tmp_path / "raw.parquet"), tmp_path / "raw_scores.parquet", "goods", say=said.append)
    prepared, found = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("prepared", "raw_scores"))
    assert found.column_names == ["user", "ts", "item", "category", "n", "prob_click@goods", "prob_buy@goods"]
    assert count == raw.num_rows == found.num_rows
    for name in ("n", "item"):
        assert found[name].to_pylist() == raw[name].to_pylist()
    by_row = dict(zip(found["n"].to_pylist(), found["prob_click@goods"].to_pylist(), strict=True))
    expected = dict(zip(prepared["n"].to_pylist(), prepared["prob_click@goods"].to_pylist(), strict=True))
    assert len(expected) > 30
    assert {n: by_row[n] for n in expected} == pytest.approx(expected, abs=1e-6)
    rare = [line for line in said if line.startswith("item: ")]
    unseen = sum(item not in known for item in raw["item"].to_pylist())
    assert rare == [f"item: {unseen} of {count} values have no row of their own (new, rare or missing), and use row 0"]


def test_raw_rows_that_cannot_be_encoded(out, run, tmp_path):
    raw = pq.read_table(out.parent / "views.parquet").drop_columns(["price"])
    pq.write_table(raw, tmp_path / "raw.parquet")
    with pytest.raises(UserError, match=r"no column 'price'|'price' is not a column"):
        score_raw(run, str(tmp_path / "raw.parquet"), tmp_path / "s.parquet", "goods")
    with pytest.raises(UserError, match="--domain nope: the recipe's domains are: goods, videos"):
        score_raw(run, str(tmp_path / "raw.parquet"), tmp_path / "s.parquet", "nope")
    shutil.rmtree(shutil.copytree(run, tmp_path / "copy") / "encoders")
    with pytest.raises(UserError, match="keeps no encoders, as its data were not made by 'prepare RECIPE'"):
        score_raw(tmp_path / "copy", str(tmp_path / "raw.parquet"), tmp_path / "s.parquet", "goods")
    assert not (tmp_path / "s.parquet").exists()
    assert not list(tmp_path.glob(".score*"))


def test_new_rows_are_evaluated_by_their_schema(out, run, tmp_path):
    content = yaml.safe_load((out.parent / "recipe.yaml").read_text(encoding="utf-8"))
    new = [{**row, "clicked": 1 - row["clicked"], "bought": None} for row in views()]
    for row in new:
        row["bought"] = row["n"] % 2 == 0 if row["clicked"] else None
    write_shop(tmp_path, view_rows=new)
    raw = {"views": str(tmp_path / "views.parquet")}
    again = prepare(tmp_path, content, "again", encoders=run / "encoders", inputs=raw)
    own, other = evaluate(run), evaluate(run, schema=again / "schema.yaml")
    assert other["eval"]["like@videos"] == own["eval"]["like@videos"]
    assert other["eval"]["click@goods"] != own["eval"]["click@goods"]
    with pytest.raises(
        UserError, match=r"mean something else than those of the run \(name, tasks, features, weight differ\)"
    ):
        evaluate(run, schema=prepare(tmp_path, recipe(tmp_path, name="two"), "two") / "schema.yaml")
