"""Replays of raw keys: vocabularies grow, stay as they were, or forget, as the policy and the slices' days say."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.study.replay.conftest import in_process
from tests.support.raw_keys import raw_schema_at, write_raw
from torchrec_xd.data.vocabularies import read_vocabularies
from torchrec_xd.errors import UserError
from torchrec_xd.study.replay import replaying
from torchrec_xd.study.replay.replaying import replay

DATES = ("2026-11-01", "2026-11-02", "2026-11-04", "2026-11-05")
POLICIES = ["never", "scratch", "incremental", "incremental_without_growth"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four days of a raw feed with 20 users each, on the third one 40, some of them new; replayed once."""
    folder = tmp_path_factory.mktemp("raw")
    for number, date in enumerate(DATES):
        feed = write_raw(
            folder / "whole" / date, number, users=(5 * number, 5 * number + (40 if number == 2 else 20)), rows=72
        )
        path = folder / "feed" / "post" / f"day={date}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pq.read_table(feed / "post" / "train.parquet"), path)
    schema = raw_schema_at(folder / "feed", expire=2)
    schema["domains"] = {"post": schema["domains"]["post"]}
    schema["tasks"] = [task for task in schema["tasks"] if task["domain"] == "post"]
    schema["features"] = [f for f in schema["features"] if not f.get("domains") or "post" in f["domains"]]
    for feature in schema["features"]:
        if feature.get("domains"):
            feature["domains"] = ["post"]
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    config = {
        "schema": "schema.yaml",
        "model": {"name": "single", "widths": [8]},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "optimizer": {"tables": {"lr": 0.2}, "dense": {"lr": 0.01}},
        "trainer": {"threads": 1},
    }
    (folder / "single.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replaying, "work", in_process)
        assert replay(written(folder), folder / "out") == {}
    return folder


def written(folder, **changes):
    content = {
        "schema": "schema.yaml",
        "slices": {"post": "post/day=*"},
        "warm_up": 2,
        "policies": POLICIES,
        "seeds": 1,
        "samples": 400,
        "models": {"single": {"config": "single.yaml"}},
        **changes,
    }
    path = folder / "replay.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def keys(folder, step):
    """Users with a row in the vocabulary of a step's run, and the description."""
    run = folder / "out" / "0" / step / "single"
    table = pq.read_table(run / "vocabularies" / "t_user.parquet").to_pylist()
    return {each["key"] for each in table if each["row"] is not None}, read_vocabularies(run / "vocabularies")


def users(folder, *dates):
    read = [pq.read_table(folder / "feed" / "post" / f"day={date}" / "part.parquet") for date in dates]
    return {user for table in read for user in table["user"].to_pylist()}


def test_each_policy_has_the_keys_of_what_it_was_trained_on(folder):
    last = DATES[-1]
    warm_up, described = keys(folder, f"warm_up/{DATES[2]}")
    assert warm_up == users(folder, *DATES[:2])
    assert described.dated
    scratch, _ = keys(folder, f"scratch/{last}")
    assert scratch == users(folder, *DATES[:3])
    fixed, _ = keys(folder, f"incremental_without_growth/{last}")
    assert fixed == warm_up
    # On 2026-11-04 what was last seen on 2026-11-02 is two days old.
    incremental, described = keys(folder, f"incremental/{last}")
    assert incremental == users(folder, DATES[2])
    assert np.datetime64(described.now, "D") == np.datetime64(DATES[2])


def test_results_tell_how_tables_grow(folder):
    found = json.loads((folder / "out" / "results.json").read_text())
    sizes = [
        read_vocabularies(folder / "out" / "0" / step / "single" / "vocabularies").tables["t_user"].rows
        for step in (f"warm_up/{DATES[2]}", f"incremental/{DATES[-1]}")
    ]
    rows = found["tables"]["user"]["rows"]
    assert rows == [None, *sizes, None]  # no step ends with the first slice, none is trained on the last one
    assert sizes[1] > sizes[0]
    assert "Rows of tables" in (folder / "out" / "results.md").read_text()
    first = pq.read_table(folder / "feed" / "post" / f"day={DATES[1]}" / "part.parquet")["user"].to_pylist()
    new = [user not in users(folder, DATES[0]) for user in first]
    assert found["tables"]["user"]["unseen"][1] == pytest.approx(np.mean(new))


REFUSED = {
    "grows": ({"grows": ["user"]}, "grows: 'user' has a vocabulary, so its table grows by itself; take it out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(folder, tmp_path, name):
    change, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        replay(written(folder, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()
