from pathlib import Path

import pytest
import yaml

from tests.support.feeds import SCHEMA
from torchrec_xd.config import load_config, load_run
from torchrec_xd.errors import UserError


def write(folder: Path, schema=SCHEMA, **settings) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"schema": "schema.yaml", "model": {"name": "mkt_pretrain"}, **settings}))
    return path


def test_a_schema_file_lies_relative_to_its_config(tmp_path):
    config = load_config(write(tmp_path / "configs"))
    assert list(config.data_schema.domains) == ["items", "video", "post"]


def test_what_is_dumped_says_the_same_and_needs_no_other_file(tmp_path):
    config = load_config(write(tmp_path, seed=7, domains=["items", "post"]), ["trainer.epochs=3", "schema.dim=8"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.dump())
    (tmp_path / "schema.yaml").unlink()
    again = load_run(tmp_path / "run")
    assert again == config
    assert (again.trainer.epochs, again.data_schema.dim, again.seed) == (3, 8, 7)
    with pytest.raises(UserError, match="no run folder"):
        load_run(tmp_path)


def test_a_fault_of_the_schema_is_told_under_its_own_file(tmp_path):
    features = [*SCHEMA["features"], {"column": "again", "kind": "id", "group": "user", "table": "item", "rows": 3}]
    path = write(tmp_path, schema={**SCHEMA, "features": features})
    with pytest.raises(UserError, match=r"schema\.yaml.*table 'item' is shared by 'hist' \(rows 60.*'again' \(rows 3"):
        load_config(path)


def test_a_config_may_extend_another_and_only_differ(tmp_path):
    write(tmp_path, seed=3)
    (tmp_path / "child.yaml").write_text("extends: run.yaml\nmodel: {gamma: 0.0}\n")
    config = load_config(tmp_path / "child.yaml")
    assert (config.model.name, config.model.gamma, config.seed) == ("mkt_pretrain", 0.0, 3)


def test_stage_two_parent_a_run_and_no_other_model_does(tmp_path):
    with pytest.raises(UserError, match="set init_from"):
        load_config(write(tmp_path, model={"name": "mkt_finetune"}))
    with pytest.raises(UserError, match="remove init_from"):
        load_config(write(tmp_path, init_from="runs/x"))


def test_training_on_the_validation_rows_leaves_none_to_validate_on(tmp_path):
    schema = load_config(write(tmp_path, train_on_valid=True)).schema_in_use
    assert schema.domains["items"].paths("train") == ("items/train.parquet", "items/valid.parquet")
    assert schema.domains["video"].paths("train") == ("video/train.parquet",)
    assert schema.domains["post"].paths("valid") == ()
    assert schema.domains["post"].paths("test") == ("post/test.parquet",)
    assert schema.fingerprint() == load_config(write(tmp_path)).schema_in_use.fingerprint()


def test_a_run_narrows_tasks_and_features_and_says_what_it_watches(tmp_path):
    config = load_config(write(tmp_path, domains=["post"], without=["style"], monitor_tasks=["click@post"]))
    assert "style" not in [feature.column for feature in config.schema_in_use.features]
    assert [task.name for task in config.schema_in_use.tasks] == ["click@post"]
    for change, message in (
        ({"tasks": ["buy@post"]}, "unknown task 'buy@post'"),
        ({"tasks": ["click@post"]}, "domain 'items' is left without a task"),
        ({"without": ["stlye"]}, "'stlye' is no feature"),
        ({"monitor_tasks": ["buy@post"]}, "monitor_tasks: 'buy@post' is not a task in use; these are: click@items"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(write(tmp_path, **change))


def test_what_changed_is_named_by_its_own_key(tmp_path):
    """Not by the whole list that it is part of."""
    hour = next(i for i, feature in enumerate(SCHEMA["features"]) if feature["column"] == "hour")
    features = [*SCHEMA["features"]]
    features[hour] = {**features[hour], "rows": 25}
    first, other = (
        load_config(write(tmp_path, {**SCHEMA, "features": each}), ["trainer.epochs=2"])
        for each in (SCHEMA["features"], features)
    )
    assert other.changes_from(first) == "schema.features.hour.rows was 24, is 25"
    turned = load_config(write(tmp_path, {**SCHEMA, "features": SCHEMA["features"][::-1]}), ["trainer.epochs=2"])
    assert turned.changes_from(first) == "the order of features, domains or other keys"
    shares = [
        load_config(write(tmp_path), [f"loader.curriculum=[{{epochs: 1, shares: {{post: {n}}}}}]"]) for n in (1, 0.5)
    ]
    assert shares[1].changes_from(shares[0]) == "loader.curriculum.0.shares.post was 1.0, is 0.5"
