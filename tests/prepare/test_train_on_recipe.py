"""The schema that `prepare` writes loads, and a model trains on its rows."""

import pytest

from tests.support.raw_shop import EVERY_KIND, prepare, recipe, write_shop
from torchrec_xd.config import load_config
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.shipped import CONFIGS
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


def test_a_model_trains_on_it(out, tmp_path):
    config = load_config(CONFIGS / "base" / "mmoe.yaml", SMALL, out / "schema.yaml")
    found = train(config, tmp_path / "run")["eval"]
    assert set(found) == {"click@goods", "buy@goods", "like@videos"}
    assert all(0 < each["logloss"] < 3 for each in found.values())
