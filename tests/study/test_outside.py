"""Models from outside: measured as runs are, by the rows that they were given for; and models of some data only."""

import json
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.study.conftest import STUDY, write_study
from tests.support.feeds import schema_at, write_feed
from torchrec_xd.data.loader import LoaderSettings
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.study import comparison, scores
from torchrec_xd.study.cells import cells
from torchrec_xd.study.comparison import commands, run_study
from torchrec_xd.study.design import load_study, load_tuned, select
from torchrec_xd.study.scores import outside_scores
from torchrec_xd.study.tuning import tune

TRAINED = {name: STUDY["models"][name] for name in ("single", "bottom")}
ROWS = 200
"""Test rows of the feed."""


@pytest.fixture
def place(lab, tmp_path, monkeypatch):
    """A folder with the lab's configs and finished runs, in which nothing may be trained."""
    for seed in "01":
        for name in TRAINED:
            shutil.copytree(lab.parent / "out" / "feed" / seed / name, tmp_path / "out" / "feed" / seed / name)
    for path in lab.parent.glob("*.yaml"):
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.setattr(comparison, "work", lambda *_, **__: pytest.fail("something was trained"))
    return tmp_path


def write_outside(place, models, **change):
    """Beside the configs, whose feed is the lab's, a study of two trained models and others."""
    path = place / "outside.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "models": {**TRAINED, **models}, **change}, sort_keys=False))
    return path


def results(place):
    return json.loads((place / "out" / "results.json").read_text())


def of(lines, **wanted):
    return [line for line in lines if wanted.items() <= line.items()]


def test_scores_of_a_run_give_its_metrics_and_no_difference(place):
    path = write_outside(place, {"given": {"scores": "given/{data}-{seed}.parquet"}}, reference="given")
    (place / "given").mkdir()
    for seed in "01":
        table = pq.read_table(place / "out" / "feed" / seed / "bottom" / "scores.parquet")
        pq.write_table(table.select(["user", "score_click@post"]), place / "given" / f"feed-{seed}.parquet")
    assert run_study(load_study(path), path, place / "out") == {}
    found = results(place)
    for seed in (0, 1):
        [given], [run] = (of(found["cells"], model=model, seed=seed) for model in ("given", "bottom"))
        cost = {"rows_per_second": None, "parameters": None, "peak_memory_bytes": None}
        assert given == {**run, "model": "given", **cost}
        assert set(given["groups"]["activity"]) == {"<10", "10-30", ">=30"}
    same, other = (of(found["verdicts"], model=model) for model in ("bottom", "single"))
    assert [(line["delta"], line["low"], line["high"], line["verdict"]) for line in same] == [
        (0, 0, 0, "can't tell")
    ] * 3
    assert all(line["delta"] != 0 for line in other)
    assert of(found["verdicts"], model="given") == []  # it is the reference


def test_the_page_says_who_was_trained_elsewhere(place):
    given = {"scores": "out/feed/0/bottom/scores.parquet"}  # one file, whatever the seed
    path = write_outside(place, {"given": given})
    assert run_study(load_study(path), path, place / "out") == {}
    first, second = of(results(place)["cells"], model="given")
    assert {**first, "seed": 1} == second
    text = (place / "out" / "results.md").read_text()
    assert "Trained elsewhere, only their scores are known: given." in text
    assert "| given | – | – | – | – | – |" in text
    assert "given" in (place / "out" / "results.html").read_text()


def changed(**columns):
    return lambda table: pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **columns})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "given.parquet: no such file"),
        (lambda table: table.take(np.roll(np.arange(ROWS), 1)), "its users are not those of the test rows: in row 0 "),
        (lambda table: table.slice(1), "has 199 rows, the test split 200"),
        (lambda table: table.drop_columns("user"), "has no column 'user'; its columns are: "),
        (lambda table: table.drop_columns("score_click@post"), "has no column 'score_click@post'; its columns are: "),
        (
            changed(**{"score_click@post": pa.array(["?"] * ROWS)}),
            "column 'score_click@post' holds string, not numbers",
        ),
        (changed(**{"score_click@post": pa.array([None] + [0.5] * (ROWS - 1))}), "1 scores are NaN, infinite or miss"),
    ],
)
def test_what_is_not_of_the_test_rows_is_refused_before_anything_is_trained(place, change, said):
    path = write_outside(place, {"given": {"scores": "given.parquet"}})
    if change is not None:
        table = pq.read_table(place / "out" / "feed" / "0" / "single" / "scores.parquet")
        pq.write_table(change(table), place / "given.parquet")
    shutil.rmtree(place / "out")
    with pytest.raises(UserError) as error:
        run_study(load_study(path), path, place / "out")
    assert f"models.given.scores: {place / 'given.parquet'}: " in str(error.value)
    assert said in str(error.value)
    assert "as `torchrec-xd score --parts` writes them" in str(error.value)


def test_a_file_that_is_no_parquet_is_refused(place):
    path = write_outside(place, {"given": {"scores": "given.parquet"}})
    (place / "given.parquet").write_text("user,score\n")
    with pytest.raises(UserError, match=r"given.parquet: not a readable Parquet file \("):
        run_study(load_study(path), path, place / "out")


def test_row_weights_count_and_scores_need_not_be_probabilities(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "LoaderSettings", partial(LoaderSettings, batch_size=64))  # several batches
    write_feed(tmp_path / "feed")
    random, test = np.random.default_rng(0), tmp_path / "feed" / "post" / "test.parquet"
    weight, count = random.integers(1, 9, ROWS).astype(float), random.integers(5, size=ROWS)
    rows = pq.read_table(test).append_column("weight", pa.array(weight))
    pq.write_table(rows, test)
    path = write_study(tmp_path, {"models": {**TRAINED, "given": {"scores": "given.parquet"}}})
    config = yaml.safe_load((tmp_path / "single.yaml").read_text())
    config["schema"] = {**schema_at(tmp_path / "feed"), "weight": "weight"}
    (tmp_path / "single.yaml").write_text(yaml.safe_dump(config))
    pq.write_table(pa.table({"user": rows["user"], "score_click@post": count}), tmp_path / "given.parquet")

    study = load_study(path)
    found, _ = outside_scores(study, tmp_path, cells(study, tmp_path, tmp_path / "out"))
    label, user = (rows[name].to_numpy().astype(float) for name in ("click", "user"))
    report = found.metrics()
    assert report["train"] is None
    assert report["eval"]["click@post"] == pytest.approx(binary_metrics(count, label, user, weight).as_dict())
    assert report["unweighted"]["click@post"] == pytest.approx(binary_metrics(count, label, user).as_dict())
    pairs = weight[label == 1][:, None] * weight[label == 0]
    ahead = np.sign(count[label == 1][:, None] - count[label == 0]) / 2 + 0.5
    assert report["eval"]["click@post"]["auc"] == pytest.approx((pairs * ahead).sum() / pairs.sum())
    truncated = weight @ np.minimum(count, 1) / (weight @ label)
    assert report["eval"]["click@post"]["calibration"] == pytest.approx(truncated)


def test_a_model_of_some_data_is_absent_elsewhere(place):
    shutil.copytree(place / "out" / "feed", place / "out" / "again")
    models = {
        "given": {"scores": "out/feed/{seed}/bottom/scores.parquet", "data": ["feed"]},
        "bottom": {**TRAINED["bottom"], "data": ["again"]},
    }
    data = {"feed": {"task": "click@post"}, "again": {"task": "click@post"}}
    path = write_outside(place, models, data=data, samples=130)  # decide the three comparisons of either data set
    assert run_study(load_study(path), path, place / "out") == {}
    found = results(place)
    assert {(cell["data"], cell["model"]) for cell in found["cells"]} == {
        *(("feed", "single"), ("feed", "given"), ("again", "single"), ("again", "bottom"))
    }
    feed, again = (of(found["verdicts"], data=data) for data in ("feed", "again"))
    assert [{**line, "model": "bottom", "data": "again"} for line in feed] == again  # Holm counts each data set alone
    with pytest.raises(UserError, match="--models: 'given' is not on again; leave it out, or add its --data"):
        select(load_study(path), data=["again"], models=["given"])


def test_data_without_any_trained_model_are_refused(place):
    models = {"given": {"scores": "given.parquet"}, **{name: {**TRAINED[name], "data": ["feed"]} for name in TRAINED}}
    data = {"feed": {"task": "click@post"}, "again": {"task": "click@post"}}
    path = write_outside(place, models, data=data, reference="given")
    study = select(load_study(path), data=["again"])
    with pytest.raises(UserError, match=r"data.again: no model that is shown is trained on it \(given: from outside\)"):
        run_study(study, path, place / "out")


def test_list_leaves_it_out(place):
    path = write_outside(place, {"given": {"scores": "nowhere.parquet"}}, seeds=1)
    study = load_study(path)
    assert commands(study, path, place / "out") == []
    assert len(commands(study, path, place / "elsewhere")) == len(TRAINED)


def test_tune_leaves_it_out(place):
    path = write_outside(place, {"given": {"scores": "nowhere.parquet"}})
    study = select(load_study(path), models=["given"])
    assert tune(study, path, place / "tuned", 1) == {}
    found = load_tuned(place / "tuned" / "tuned.json")
    assert set(found.best["feed"]) == set(found.searches["feed"]) == {"single"}
    assert {cell.model for cell in cells(study, place, place / "new", found)} == {"single"}
