"""Runs on raw keys: the vocabularies that they make, go on with, and read again."""

import json
import shutil
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.raw_keys import raw_schema_at, users_of, write_raw
from tests.support.small_models import weights
from tests.support.stops import train_until
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.key_rows import mixed
from torchrec_xd.data.vocabularies import read_vocabularies
from torchrec_xd.distributed.fresh_rows import FreshRows, draw
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.run_lock import LOCK
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import evaluate, predict
from torchrec_xd.training.train_run import train
from torchrec_xd.training.vocabularies import with_vocabularies

USERS = "embeddings.bags.embedding_bags.t_user.weight"
STILL = {"tables": {"lr": 1e-30}, "dense": {"lr": 1e-30}}
MOVING = {"tables": {"lr": 0.1}, "dense": {"lr": 0.01}}
PRETRAIN = {"name": "mkt_pretrain", "expert_widths": [8, 6], "aligned_dim": 4, "tower_widths": [4]}
FINETUNE = {"name": "mkt_finetune", "widths": [8], "head_widths": [4]}


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Three days: users 0 to 29, then 10 to 39, then 20 to 49."""
    folder = tmp_path_factory.mktemp("raw")
    for day in (1, 2, 3):
        write_raw(folder / f"day{day}", day, users=(10 * day - 10, 10 * day + 20))
    return folder


def config_of(days, number, optimizer=MOVING, vocabulary=None, **changes):
    content = {
        "schema": raw_schema_at(days / f"day{number}", **(vocabulary or {})),
        "model": {"name": "single", "widths": [8, 6]},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "optimizer": optimizer,
        "embeddings": {"init_std": 0.5},
        "trainer": {"epochs": 1, "threads": 1},
        "evaluate_on": "train",
        **changes,
    }
    return validate(RunConfig, content, "test")


def rows_of(run, table="t_user"):
    content = pq.read_table(run / "vocabularies" / f"{table}.parquet").to_pylist()
    return {entry["key"]: entry["row"] for entry in content}


def expected_rows(counts, free):
    """Rows in the order of counts, then keys."""
    order = sorted(counts, key=lambda key: (-counts[key], key))
    return dict(zip(order, free, strict=False))


def test_a_run_makes_its_vocabularies_and_reads_them_again(days, tmp_path):
    content = train(config_of(days, 1), tmp_path / "run")
    counts = users_of(days / "day1", ["post"])
    assert rows_of(tmp_path / "run") == expected_rows(counts, range(1, 100))
    found = read_vocabularies(tmp_path / "run" / "vocabularies")
    assert (found.now, found.dated) == (0, False)
    assert {name: (file.keys, file.rows) for name, file in found.tables.items()} == {
        "t_user": ("strings", 32),
        "t_item": ("integers", 64),
    }
    assert len(weights(tmp_path / "run")[USERS]) == 32
    assert not (tmp_path / "run" / ".vocabularies").exists()
    assert evaluate(tmp_path / "run", "train")["eval"] == content["eval"]
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    table = predict(moved, days / "day1" / "post" / "train.parquet", domain="post")
    assert len(table) == 96


def test_first_weights_are_those_of_the_key_whatever_its_row(days, tmp_path):
    train(config_of(days, 1, STILL), tmp_path / "first")
    train(config_of(days, 2, STILL), tmp_path / "other")
    one, two = ((rows_of(tmp_path / name), weights(tmp_path / name)[USERS]) for name in ("first", "other"))
    both = one[0].keys() & two[0].keys()
    assert len(both) > 10
    assert any(one[0][key] != two[0][key] for key in both)
    for key in both:
        torch.testing.assert_close(one[1][one[0][key]], two[1][two[0][key]], rtol=0, atol=1e-20)
    train(config_of(days, 1, STILL, seed=1), tmp_path / "seed")
    third = weights(tmp_path / "seed")[USERS]
    assert not torch.equal(third[1:], one[1][1:])


def test_drawn_weights_are_standard_normal_numbers():
    hashes = mixed(np.arange(50_000, dtype=np.uint64))
    fresh = FreshRows("t_a", "w", np.arange(50_000), hashes, 1.0, 0)
    drawn = draw(fresh, hashes, 8)
    assert drawn.shape == (50_000, 8)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.03
    assert abs((np.abs(drawn) < 1).mean() - 0.6827) < 0.005
    assert (draw(fresh, hashes[7:9], 8) == drawn[7:9]).all()


def test_a_run_goes_on_with_the_vocabularies_of_the_one_before(days, tmp_path):
    """Users 10 to 29 stay, 30 to 39 come behind them; 0 to 9 keep their rows, though no one reads them."""
    train(config_of(days, 1), tmp_path / "first")
    train(config_of(days, 2, STILL), tmp_path / "second", continue_from=tmp_path / "first")
    before, after = rows_of(tmp_path / "first"), rows_of(tmp_path / "second")
    counts = users_of(days / "day2", ["post"])
    new = {key: count for key, count in counts.items() if key not in before}
    assert after == {**before, **expected_rows(new, range(1 + len(before), 100))}
    old, grown = weights(tmp_path / "first")[USERS], weights(tmp_path / "second")[USERS]
    assert (len(old), len(grown)) == (32, 48)
    kept = sorted(before.values())
    torch.testing.assert_close(grown[kept], old[kept], rtol=0, atol=1e-20)
    alone = config_of(days, 2, STILL)
    train(alone, tmp_path / "alone")
    drawn = weights(tmp_path / "alone")[USERS]
    there = rows_of(tmp_path / "alone")
    for key in new:
        torch.testing.assert_close(grown[after[key]], drawn[there[key]], rtol=0, atol=1e-20)
    found = read_vocabularies(tmp_path / "second" / "vocabularies")
    assert found.now == 1
    assert json.loads((tmp_path / "second" / "continued.json").read_text())["grown"] == {"t_user": [32, 48]}


def test_expired_rows_are_used_again_with_weights_and_state_of_their_own(days, tmp_path):
    vocabulary = {"expire": 1}
    train(config_of(days, 1, vocabulary=vocabulary), tmp_path / "first")
    train(config_of(days, 2, STILL, vocabulary=vocabulary), tmp_path / "second", continue_from=tmp_path / "first")
    before, after = rows_of(tmp_path / "first"), rows_of(tmp_path / "second")
    assert set(after) == set(users_of(days / "day2", ["post"]))
    gone = {row for key, row in before.items() if key not in after}
    reused = {key: row for key, row in after.items() if row in gone}
    assert reused
    assert all(before[key] == row for key, row in after.items() if key in before)
    train(config_of(days, 2, STILL), tmp_path / "alone")
    drawn, there = weights(tmp_path / "alone")[USERS], rows_of(tmp_path / "alone")
    grown, old = weights(tmp_path / "second")[USERS], weights(tmp_path / "first")[USERS]
    for key, row in after.items():
        expected = drawn[there[key]] if key in reused else old[row] if key in before else drawn[there[key]]
        torch.testing.assert_close(grown[row], expected, rtol=0, atol=1e-20)


def test_rows_that_were_never_seen_in_training_are_row_0(days, tmp_path):
    train(config_of(days, 1), tmp_path / "run")
    source = days / "day1" / "post" / "train.parquet"
    table = pq.read_table(source)
    for name, users in (("new", ["nobody"] * len(table)), ("other", [f"x{i}" for i in range(len(table))])):
        pq.write_table(
            table.set_column(table.column_names.index("user"), "user", pa.array(users)), tmp_path / f"{name}.parquet"
        )
    scores = [predict(tmp_path / "run", tmp_path / f"{name}.parquet", domain="post") for name in ("new", "other")]
    assert scores[0]["prob_click@post"].equals(scores[1]["prob_click@post"])
    assert not scores[0]["prob_click@post"].equals(predict(tmp_path / "run", source, domain="post")["prob_click@post"])


def test_the_clock_of_days(days, tmp_path):
    train(config_of(days, 1, day="2026-11-20", vocabulary={"expire": 3}), tmp_path / "first")
    for day, said in (
        ("2026-11-20", r"day is 2026-11-20, and .*first is of 2026-11-20: days go forward"),
        ("2026-11-19", r"day is 2026-11-19, and .*first is of 2026-11-20: days go forward"),
        (None, r"first is of day 2026-11-20, and this run has no day: set day"),
    ):
        config = config_of(days, 2, day=day, vocabulary={"expire": 3})
        with pytest.raises(UserError, match=said):
            train(config, tmp_path / "refused", continue_from=tmp_path / "first")
        assert not (tmp_path / "refused").exists()
    for days_on, expired in ((2, False), (3, True)):
        config = config_of(days, 2, day=date(2026, 11, 20 + days_on), vocabulary={"expire": 3})
        train(config, tmp_path / f"after{days_on}", continue_from=tmp_path / "first")
        assert (set(rows_of(tmp_path / f"after{days_on}")) == set(users_of(days / "day2", ["post"]))) is expired
    found = read_vocabularies(tmp_path / "after3" / "vocabularies")
    assert (found.now, found.dated) == ((date(2026, 11, 23) - date(1970, 1, 1)).days, True)
    train(config_of(days, 1), tmp_path / "slices")
    config = config_of(days, 2, day="2026-11-20")
    with pytest.raises(UserError, match=r"day is 2026-11-20, and .*slices has no day: leave day out"):
        train(config, tmp_path / "refused", continue_from=tmp_path / "slices")


def test_a_table_at_capacity_is_refused_before_anything_is_written(days, tmp_path):
    vocabulary = {"capacity": 61}
    train(config_of(days, 1, vocabulary=vocabulary), tmp_path / "first")
    config = config_of(days, 2, vocabulary={"capacity": 33})
    message = r"table 'user': 39 keys and row 0 need 40 rows, and vocabulary.capacity is 33: raise it, or raise admit"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "second", continue_from=tmp_path / "first")
    assert not [path.name for path in tmp_path.glob("second/*") if path.name != LOCK]


def test_a_run_goes_on_after_a_kill_with_the_vocabularies_that_it_made(days, tmp_path, monkeypatch):
    train(config_of(days, 1), tmp_path / "first")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "first").rglob("*")) if path.is_file()}
    config = config_of(days, 2, continue_from=tmp_path / "first", trainer={"epochs": 2, "threads": 1})
    train(config, tmp_path / "whole")
    train_until(2, monkeypatch, config, tmp_path / "killed", how="die")  # before its first checkpoint
    train_until(5, monkeypatch, config, tmp_path / "stopped")
    train(config, tmp_path / "killed", resume=True)
    train(config, tmp_path / "stopped", resume=True)
    whole = weights(tmp_path / "whole")
    for name in ("killed", "stopped"):
        found = weights(tmp_path / name)
        assert all(torch.equal(found[key], whole[key]) for key in whole)
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "whole")
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "first").rglob("*")) if path.is_file()}
    (tmp_path / "half" / ".vocabularies").mkdir(parents=True)  # of a run that was killed while it made them
    train(config, tmp_path / "half", restartable=True)
    assert rows_of(tmp_path / "half") == rows_of(tmp_path / "whole")


def test_vocabularies_of_another_run_are_refused(days, tmp_path):
    train(config_of(days, 1), tmp_path / "run")
    train(config_of(days, 2), tmp_path / "other")
    shutil.rmtree(tmp_path / "run" / "vocabularies")
    shutil.copytree(tmp_path / "other" / "vocabularies", tmp_path / "run" / "vocabularies")
    with pytest.raises(UserError, match="does not belong to the vocabularies of this run"):
        evaluate(tmp_path / "run", "train")
    with pytest.raises(UserError, match="does not belong to the vocabularies of this run"):
        train(config_of(days, 2), tmp_path / "next", continue_from=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "vocabularies")
    with pytest.raises(UserError, match="holds no vocabularies"):
        evaluate(tmp_path / "run", "train")


def test_what_changes_the_keys_is_refused(days, tmp_path):
    train(config_of(days, 1), tmp_path / "first")
    plain = raw_schema_at(days / "day2")
    features = [{**f, "vocabulary": None, "rows": 48} if f["column"] == "user" else f for f in plain["features"]]
    config = config_of(days, 2, schema={**plain, "features": features})
    with pytest.raises(UserError, match=r"'vocabulary' of feature 'user' was True, is False"):
        train(config, tmp_path / "second", continue_from=tmp_path / "first")
    file = tmp_path / "numbers"
    shutil.copytree(days / "day2", file)
    for path in file.rglob("*.parquet"):
        table = pq.read_table(path)
        numbers = pa.array([int(name[1:]) for name in table["user"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("user"), "user", numbers), path)
    with pytest.raises(UserError, match=r"table 'user': keys were strings so far and are integers now"):
        train(config_of(tmp_path, 2, schema=raw_schema_at(file)), tmp_path / "second", continue_from=tmp_path / "first")


def test_a_second_stage_reads_with_the_vocabularies_of_the_first(days, tmp_path):
    """Stage 1 and 2 on day 1; stage 1 goes on with day 2; stage 2 goes on with it, and its rows with it."""

    def stages(day, mem, tem, **origins):
        first, second = (origins.get(name) for name in ("first", "second"))
        train(config_of(days, day, model=PRETRAIN, domains=None), tmp_path / mem, continue_from=first)
        config = config_of(days, day, STILL, model=FINETUNE, init_from=str(tmp_path / mem))
        train(config, tmp_path / tem, continue_from=second)

    stages(1, "mem1", "tem1")
    assert rows_of(tmp_path / "mem1") == rows_of(tmp_path / "tem1")
    assert set(rows_of(tmp_path / "mem1")) > set(users_of(days / "day1", ["post"]))
    stages(2, "mem2", "tem2", first=tmp_path / "mem1", second=tmp_path / "tem1")
    assert rows_of(tmp_path / "mem2") == rows_of(tmp_path / "tem2")
    one, two = weights(tmp_path / "tem1"), weights(tmp_path / "tem2")
    kept = [row for row in rows_of(tmp_path / "tem1").values() if row]
    torch.testing.assert_close(two[USERS][kept], one[USERS][kept], rtol=0, atol=1e-20)
    assert torch.equal(two[f"teacher.{USERS}"], weights(tmp_path / "mem2")[USERS])
    assert evaluate(tmp_path / "tem2", "train")["eval"]


def test_every_rank_reads_the_same_config(days, tmp_path):
    """What a run writes down is what it reads again: rows included."""
    train(config_of(days, 1), tmp_path / "run")
    config = load_run(tmp_path / "run")
    assert {f.column: f.rows for f in config.data_schema.features if f.vocabulary} == {
        "user": 32,
        "hist": 64,
        "item": 64,
    }
    assert config.data_schema.vocabularies == tmp_path / "run" / "vocabularies"
    again = with_vocabularies(config_of(days, 1), RunFolder(tmp_path / "run"), None, begun=True)
    assert again.changes_from(config) == ""
    train(config, tmp_path / "next", continue_from=tmp_path / "run")
