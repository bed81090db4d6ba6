"""Verdicts on slices, of few users and of rows of one class; and what a study can find at all."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t as student

from tests.study.conftest import write_study
from tests.support.feeds import SCHEMA
from torchrec_xd.evaluation.significance import holm, paired_bootstrap, spreads_needed
from torchrec_xd.study import verdicts
from torchrec_xd.study.cells import cells
from torchrec_xd.study.design import load_study, select
from torchrec_xd.study.pages import save_results
from torchrec_xd.study.results import study_results
from torchrec_xd.study.verdicts import power_warnings


@pytest.fixture
def place(lab, tmp_path):
    """A copy of the lab, whose data may be changed."""
    shutil.copytree(lab.parent / "feed", tmp_path / "feed")
    shutil.copytree(lab.parent / "out", tmp_path / "out")
    return tmp_path


def compared(place, change=None, schema=None):
    """Results of the models that start from no other."""
    path = write_study(place, change, schema=schema)
    study = select(load_study(path), models=["bottom"])
    found = study_results("study", study, cells(study, place, place / "out"))
    save_results({**found, "failed": {}, "tuned": None}, place / "results")
    return found


def change_users(place, user):
    test = place / "feed" / "post" / "test.parquet"
    for path in (test, *place.rglob("scores.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.column_names.index("user"), "user", pa.array(user)), path)


def change_labels(place, label):
    path = place / "feed" / "post" / "test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("click"), "click", pa.array(label, pa.int8())), path)


def test_slices_have_intervals_and_verdicts_like_the_whole(place):
    found = compared(place)["slice_verdicts"]
    rows = pq.read_table(place / "feed" / "post" / "test.parquet")
    label, user, clicks = (rows[name].to_numpy() for name in ("click", "user", "clicks"))

    def scores(model, kept):
        files = [place / "out" / "feed" / seed / model / "scores.parquet" for seed in "01"]
        return np.stack([pq.read_table(file)["score_click@post"].to_numpy()[kept] for file in files])

    groups = {"<10": clicks < 10, "10-30": (clicks >= 10) & (clicks < 30), ">=30": clicks >= 30}
    assert groups["<10"].any()
    wanted = {
        (group, metric): paired_bootstrap(
            scores("bottom", kept), scores("single", kept), label[kept], user[kept], metric=metric, samples=720
        )  # twice what 9 comparisons need, more than the study's 400
        for group, kept in ((name, np.flatnonzero(rows)) for name, rows in groups.items())
        for metric in ("auc", "gauc", "logloss")
    }
    assert {(line["group"], line["metric"]) for line in found} == set(wanted)
    enough = {key: line.p for key, line in wanted.items() if line.users >= 10}
    adjusted = dict(zip(enough, holm(list(enough.values())), strict=True))
    assert len(enough) < len(wanted)  # GAUC of the first group rests on a few users
    for line in found:
        key = line["group"], line["metric"]
        assert (line["column"], line["model"], line["data"], line["seeds"]) == ("activity", "bottom", "feed", 2)
        assert line["delta"] == pytest.approx(wanted[key].delta)
        assert (line["low"], line["high"]) == pytest.approx((wanted[key].low, wanted[key].high))
        assert (line["p_holm"], line["users"]) == (pytest.approx(adjusted.get(key)), wanted[key].users)
        assert line["verdict"] == ("can't tell" if key in enough else "too few users")
    text = (place / "results.md").read_text()
    assert "log loss, <10" in text
    assert "corrected for all 9 comparisons of this table" in text


def test_columns_with_many_groups_have_no_intervals(place, monkeypatch):
    monkeypatch.setattr(verdicts, "MAX_GROUPS", 2)
    assert compared(place)["slice_verdicts"] == []


def test_rows_of_one_user_give_no_interval_and_no_verdict(place):
    change_users(place, np.full(200, 7))
    found = compared(place)
    for line in found["verdicts"]:
        assert line["delta"] != 0
        assert (line["low"], line["high"], line["p_holm"]) == (None, None, None)
        assert (line["users"], line["verdict"]) == (1, "too few users")
    assert "(no interval; 1 user) too few users" in (place / "results.md").read_text()


def test_nine_users_are_too_few_and_ten_are_not(place):
    change_users(place, np.arange(200) % 9)
    assert {(line["users"], line["verdict"]) for line in compared(place)["verdicts"]} == {(9, "too few users")}
    change_users(place, np.arange(200) % 10)
    found = compared(place)["verdicts"]
    assert {(line["users"], line["verdict"]) for line in found} == {(10, "can't tell")}
    assert all(line["low"] < line["delta"] < line["high"] for line in found)


def test_rows_of_one_class_are_compared_by_log_loss_alone(place):
    change_labels(place, np.ones(200))
    found = compared(place)
    assert {line["metric"] for line in found["verdicts"]} == {"logloss"}
    assert "Δ log loss" in (place / "results.md").read_text()


def test_rows_without_a_nullable_label_are_left_out_of_verdicts_and_slices(place):
    """As if they were not in the files."""
    nullable = {"tasks": [*SCHEMA["tasks"][:2], {"label": "click", "domain": "post", "nullable": True}]}
    test = place / "feed" / "post" / "test.parquet"
    known = np.arange(200) % 4 != 1
    label = pq.read_table(test)["click"].to_numpy()
    change_labels(place, [int(one) if there else None for one, there in zip(label, known, strict=True)])
    found = compared(place, schema=nullable)
    for path in (test, *place.rglob("scores.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.array(known)), path)
    fewer = compared(place)
    assert found["verdicts"] == fewer["verdicts"]
    assert found["slice_verdicts"] == fewer["slice_verdicts"]
    assert found["slice_verdicts"]


def test_warnings_name_the_models_they_hold_for(lab):
    study = load_study(lab)
    every = cells(study, lab.parent, lab.parent / "out")
    shown = {}
    for cell in every:
        if cell.task is not None:
            shown.setdefault(cell.model, []).append(cell.metrics()["eval"]["click@post"]["ne"])
    found = study_results("study", study, every, ["said before"])["warnings"]
    worse = {model: np.mean(ne) for model, ne in shown.items() if np.mean(ne) > 1}
    assert found[0] == "said before"
    assert found[1:] == [
        f"feed: task click@post: NE {round(ne, 4)}: worse than predicting the mean for every row ({model})"
        for model, ne in worse.items()
    ]
    assert worse


def test_the_difference_that_a_verdict_needs_is_students_t():
    assert spreads_needed(3, 1) == pytest.approx(student.ppf(0.975, 2) / np.sqrt(3))
    assert spreads_needed(3, 18) == pytest.approx(10.9, abs=0.05)
    assert spreads_needed(3, 1) < verdicts.NEAR


def test_a_study_without_power_is_warned_of(tmp_path):
    study = load_study(write_study(tmp_path, {"seeds": 3}))  # 2 models with 3 metrics
    assert power_warnings(study) == [
        "feed: 3 seeds leave little power to 6 comparisons: a verdict needs a difference of 6.3 standard deviations "
        "over seeds (an interval excludes 0 from 2.5 on); with 5 seeds 2.2 are enough (seeds: 5), or compare fewer "
        "models or metrics"
    ]
    assert power_warnings(study.model_copy(update={"seeds": 5})) == []
    assert power_warnings(study.model_copy(update={"seeds": 1})) == []  # nothing is known of other seeds
    assert power_warnings(study.model_copy(update={"metrics": ("auc",)})) == []  # 2 comparisons: 3.6
