"""Artefacts of runs on raw keys: they carry what gives keys their rows, and changes of it."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.support.artifacts import copied, write_artifact
from tests.support.raw_keys import raw_schema_at, write_raw
from tests.support.served import Served
from torchrec_xd.config import RunConfig
from torchrec_xd.data.key_rows import KeyRows, arrays_of, mixed, read_key_rows
from torchrec_xd.errors import UserError
from torchrec_xd.export.api import export
from torchrec_xd.export.delta import write_changes
from torchrec_xd.serving.artifact import Artifact
from torchrec_xd.serving.batch_scoring import score_by_artifact
from torchrec_xd.serving.delta import TABLES, VOCABULARIES, VOCABULARY_DELTA, apply_vocabulary_delta
from torchrec_xd.serving.examples import example_body
from torchrec_xd.serving.requests import RequestReader
from torchrec_xd.serving.scorer import Scorer
from torchrec_xd.serving.versions import ServedVersion
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import predict
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Day 1 with users 0 to 29, day 2 with 10 to 39; a run on day 1 and one that goes on, and forgets users 0 to 9."""
    folder = tmp_path_factory.mktemp("raw")
    for day in (1, 2):
        write_raw(folder / f"day{day}", day, users=(10 * day - 10, 10 * day + 20))
    train(config_of(folder, 1), folder / "first")
    train(config_of(folder, 2), folder / "second", continue_from=folder / "first")
    return folder


def config_of(days, day, model=None, **changes):
    content = {
        "schema": raw_schema_at(days / f"day{day}", expire=1),
        "model": model or {"name": "single", "widths": [8, 6]},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "optimizer": {"tables": {"lr": 0.1}, "dense": {"lr": 0.01}},
        "trainer": {"threads": 1},
        **changes,
    }
    return validate(RunConfig, content, "test")


def test_an_artefact_scores_raw_keys_as_its_run_does(days, tmp_path):
    shutil.copytree(days / "first", tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    rows = {day: days / f"day{day}" / "post" / "test.parquet" for day in (1, 2)}
    expected = {day: predict(tmp_path / "run", path, domain="post")["prob_click@post"] for day, path in rows.items()}
    shutil.rmtree(tmp_path / "run")
    for day, path in rows.items():
        score_by_artifact(tmp_path / "out", path, tmp_path / "scores.parquet")
        found = pq.read_table(tmp_path / "scores.parquet")["prob_click@post"]
        np.testing.assert_allclose(found.to_numpy(), expected[day].to_numpy(), atol=1e-6)
    assert len(set(expected[2].to_pylist())) > 1


def test_requests_name_raw_keys(days, tmp_path):
    artifact = export(days / "first", tmp_path)
    opened = Artifact.open(artifact.folder)
    reader, scorer = RequestReader.of(opened), Scorer(opened)
    test = pq.read_table(days / "day1" / "post" / "test.parquet")
    row = test.slice(3, 1).to_pylist()[0]
    body = {
        "request": {c.name: row[c.name] for c in reader.columns if c.side == "request"} | {"user": row["user"]},
        "candidates": {c.name: [row[c.name]] for c in reader.columns if c.side == "candidate"},
    }
    read, user = reader.read(body, 10)
    assert user == row["user"]
    found = scorer.score(read.candidates, read.request, read.request_of_B)["click@post"]
    expected = predict(days / "first", days / "day1" / "post" / "test.parquet", domain="post", parts=True)
    np.testing.assert_allclose(found, expected["score_click@post"].to_numpy()[3:4], atol=1e-6)
    assert not read.unseen
    body["request"]["user"] = "nobody"
    body["request"]["hist"] = [*(body["request"]["hist"] or []), 5, -7]
    read, _ = reader.read(body, 10)
    assert read.unseen == {"user": 1, "hist": 2}


def test_a_server_answers_for_users_by_their_names(days, tmp_path):
    version = ServedVersion.load(export(days / "first", tmp_path).folder)
    body = example_body(version, row=5, count=1)
    expected = version.artifact.sample()[1]["click@post"][5].as_py()
    with Served(tmp_path) as served:
        known = served.client.post("/score", json=body).json()
        other = served.client.post("/score", json={**body, "request": {**body["request"], "user": "nobody"}}).json()
        metrics = served.client.get("/metrics").text
    assert body["request"]["user"].startswith("u")
    assert known["scores"]["click@post"] == pytest.approx([expected], abs=1e-6)
    assert other["scores"]["click@post"] != pytest.approx([expected], abs=1e-5)
    assert [line for line in metrics.splitlines() if line == 'torchrec_xd_unseen_ids_total{feature="user"} 1.0']


@pytest.mark.parametrize("since", [1, 2])
def test_a_version_of_changes_has_the_keys_that_came_and_went(days, tmp_path, since):
    out, whole = tmp_path / "out", tmp_path / "whole"
    export(days / "first", out)
    if since == 2:  # the same keys: nothing is written of them
        export(days / "first", out)
    changes = export(days / "second", out, since=since)
    full = export(days / "second", whole)
    delta = load_file(changes.folder / VOCABULARY_DELTA)
    before, after = (pq.read_table(days / run / "vocabularies" / "t_user.parquet") for run in ("first", "second"))
    rows = [dict(zip(t["key"].to_pylist(), t["row"].to_pylist(), strict=True)) for t in (before, after)]
    gone = [key for key, row in rows[0].items() if rows[1].get(key) != row]
    came = [key for key, row in rows[1].items() if rows[0].get(key) != row]
    assert (len(delta["gone:t_user"]), len(delta["hash:t_user"])) == (len(gone), len(came))
    assert 0 < len(gone) < len(rows[0])
    opened = Artifact.open(copied(changes, tmp_path / "copy"))
    for name in (VOCABULARIES, TABLES):
        assert (opened.folder / name).read_bytes() == (full.folder / name).read_bytes()
    path = days / "day2" / "post" / "test.parquet"
    score_by_artifact(out, path, tmp_path / "scores.parquet")
    expected = predict(days / "second", path, domain="post")["prob_click@post"].to_numpy()
    found = pq.read_table(tmp_path / "scores.parquet")["prob_click@post"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_taught_model_carries_the_keys_of_its_teacher(days, tmp_path):
    stages = {
        "teacher": ({"name": "mkt_pretrain", "expert_widths": [8, 6], "aligned_dim": 4, "tower_widths": [4]}, {}),
        "taught": ({"name": "mkt_finetune", "widths": [8], "head_widths": [4]}, {"init_from": tmp_path / "teacher"}),
    }
    for name, (model, changes) in stages.items():
        domains = None if name == "teacher" else ["post"]
        train(config_of(days, 1, model, domains=domains, **changes), tmp_path / name)
    export(tmp_path / "taught", tmp_path / "out")
    path = days / "day2" / "post" / "test.parquet"
    score_by_artifact(tmp_path / "out", path, tmp_path / "scores.parquet")
    expected = predict(tmp_path / "taught", path, domain="post")["prob_click@post"].to_numpy()
    found = pq.read_table(tmp_path / "scores.parquet")["prob_click@post"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


KEYS = st.dictionaries(st.integers(0, 40), st.integers(1, 9), max_size=20)


def rows_of(keys):
    hashes = mixed(np.array(list(keys), dtype=np.uint64))
    return KeyRows.of(hashes, np.array(list(keys.values()), dtype=np.int64))


@given(KEYS, KEYS)
def test_any_vocabulary_becomes_any_other(tmp_path_factory, before, after):
    place = tmp_path_factory.mktemp("keys")
    for version in (1, 2):
        write_artifact(place, version)
    base, folder = (place / "versions" / str(version) for version in (1, 2))
    save_file(arrays_of({"t": rows_of(before)}), base / VOCABULARIES)
    save_file(arrays_of({"t": rows_of(after), "other": rows_of(before)}), folder / VOCABULARIES)
    whole = (folder / VOCABULARIES).read_bytes()
    manifest = Artifact.open(base).manifest
    files = {**manifest.files, VOCABULARIES: "of another version"}
    write_changes(folder, Artifact(base, 1, manifest.model_copy(update={"files": files}), Artifact.open(base).schema))
    delta = load_file(folder / VOCABULARY_DELTA)
    assert len(delta["hash:t"]) == len(after.items() - before.items())
    assert len(delta["gone:t"]) == len(before.items() - after.items())
    made = place / VOCABULARIES
    apply_vocabulary_delta(folder / VOCABULARY_DELTA, base / VOCABULARIES, made)
    assert made.read_bytes() == whole
    found = read_key_rows(made)["t"].rows(mixed(np.arange(50, dtype=np.uint64)))
    assert found.tolist() == [after.get(key, 0) for key in range(50)]


def test_changes_of_other_keys_are_refused(tmp_path):
    paths = {name: tmp_path / name for name in ("base", "delta", "out")}
    save_file(arrays_of({"t": rows_of({1: 1})}), paths["base"])
    gone = mixed(np.array([2], dtype=np.uint64))
    nothing = {"hash:t": gone[:0], "row:t": np.zeros(0, dtype=np.int32)}
    header = np.frombuffer(paths["base"].read_bytes(), np.uint8)[: 8 + paths["base"].read_bytes()[0]]
    save_file({"header": header, "gone:t": gone, **nothing}, paths["delta"])
    with pytest.raises(UserError, match=r"does not fit .*base \(keys of 't' that are to go are not there\); export"):
        apply_vocabulary_delta(paths["delta"], paths["base"], paths["out"])


def test_a_file_of_keys_that_do_not_fit_is_refused(tmp_path):
    arrays = arrays_of({"t": rows_of({1: 1, 2: 2})})
    save_file({**arrays, "row:t": arrays["row:t"][:1]}, tmp_path / "keys")
    with pytest.raises(UserError, match=r"not a readable vocabulary of 't' .sizes that do not fit.; export again"):
        read_key_rows(tmp_path / "keys")
