"""Studies as files: what they mean, how they expand, and what is refused."""

import pytest
import yaml

from tests.study.conftest import STUDY, write_study
from torchrec_xd.errors import UserError
from torchrec_xd.study.cells import cells
from torchrec_xd.study.design import Tuned, load_ablation, load_study, select

CHAIN = {
    "base": "c",
    "data": {"d": {"task": "click@post", "set": {"a": ["x=1"], "c": ["y=1"]}}},
    "models": {
        "a": {"config": "a.yaml", "set": ["p=0"], "shown": False},
        "b": {"config": "b.yaml", "parent": "a"},
        "c": {"config": "c.yaml", "parent": "b", "set": ["q=0"]},
        "other": {"config": "other.yaml"},
    },
    "switches": {"wo_deep": {"a": ["p=1"]}, "wo_top": {"c": ["q=1"]}, "wo_both": {"b": ["r=1"], "c": ["q=2"]}},
}
FEED = {"task": "click@post"}
PARTLY = {**STUDY["models"], "bottom": {"config": "bottom.yaml", "data": ["more"]}}


def ablation(tmp_path, **change):
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump({**CHAIN, **change}, sort_keys=False))
    return load_ablation(path)


def study(tmp_path, **change):
    return load_study(write_study(tmp_path, change))


def test_a_switch_changes_a_model_and_all_that_begin_with_it(tmp_path):
    found = ablation(tmp_path)
    assert found.reference == "c"
    assert {name: (model.parent, model.assign, model.shown) for name, model in found.models.items()} == {
        "a": (None, ("p=0",), False),
        "b": ("a", (), True),
        "c": ("b", ("q=0",), True),
        "other": (None, (), True),
        "a-wo_deep": (None, ("p=0", "p=1"), False),
        "b-wo_deep": ("a-wo_deep", (), False),
        "wo_deep": ("b-wo_deep", ("q=0",), True),
        "wo_top": ("b", ("q=0", "q=1"), True),
        "b-wo_both": ("a", ("r=1",), False),
        "wo_both": ("b-wo_both", ("q=0", "q=2"), True),
    }
    assert found.data["d"].assign["a-wo_deep"] == ("x=1",)
    assert found.data["d"].assign["wo_top"] == found.data["d"].assign["c"] == ("y=1",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": "z"}, "base: model 'z' is not known; known are: a, b, c, other"),
        ({"switches": {"w": {"other": ["x=1"]}}}, "switches.w: model 'other' is not known; known are: c, b, a"),
        ({"switches": {"b": {"c": ["x=1"]}}}, "switches.b: a model has this name"),
        (
            {"base": "g", "models": {**CHAIN["models"], "g": {"scores": "g.parquet"}}},
            "base: 'g' has scores and is not trained here, so no switch can change it",
        ),
        ({"switches": {}}, "switches"),
        ({"switches": {"w": {}}}, "'switches.w'"),
        ({"reference": "c"}, "has 'reference', so it is for `torchrec-xd compare`"),
    ],
)
def test_an_ablation_that_makes_no_sense_is_refused(tmp_path, change, said):
    with pytest.raises(UserError) as error:
        ablation(tmp_path, **change)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reference": "singel"}, "model 'singel' is not known; known are: mkt, single, bottom, stage1"),
        ({"reference": "stage1"}, "'stage1' has shown: false"),
        ({"models": {**STUDY["models"], "mkt": {"config": "x", "parent": "no"}}}, "model 'no' is not known"),
        (
            {"models": {**STUDY["models"], "stage1": {"config": "x", "parent": "mkt"}}},
            "models.stage1 starts from itself: stage1 <- mkt",
        ),
        ({"data": {"feed": {"task": "click"}}}, "'click' is no task; write LABEL@DOMAIN"),
        ({"data": {"feed": {"task": "click@post", "set": {"no": []}}}}, "data.feed.set: model 'no' is not known"),
        ({"data": {"a/b": {"task": "click@post"}}}, "names become folders"),
        ({"data": {"feed": {"task": "click@post", "world": {"overlap": 1}}}}, "has a preset"),
        ({"samples": 100}, "samples: 100 resamples cannot decide 6 comparisons"),
        ({"switches": {}}, "so it is for `torchrec-xd ablate`"),
        ({"metric": ["auc"]}, "did you mean 'metrics'"),
        ({"models": {**STUDY["models"], "g": {}}}, "give either config: FILE, which is trained, or scores: FILE"),
        ({"models": {**STUDY["models"], "g": {"config": "x", "scores": "y"}}}, "give either config"),
        (
            {"models": {**STUDY["models"], "g": {"scores": "y", "parent": "single", "domains": "all", "set": []}}},
            "'models.g': a model with scores is not trained here: remove set, domains, parent; it may have data",
        ),
        ({"models": {**STUDY["models"], "g": {"scores": "y", "shown": False}}}, "remove shown; it may"),
        ({"models": {**STUDY["models"], "g": {"scores": "y", "space": {}}}}, "remove space; it may"),
        ({"models": {**STUDY["models"], "g": {"scores": "{sed}"}}}, "'sed' is not known; known are: data, seed"),
        (
            {"models": {**STUDY["models"], "stage1": {"scores": "y"}}},
            "models.mkt.parent: 'stage1' is not trained on 'feed'; trained there: single, bottom, mkt",
        ),
        (
            {"models": {**STUDY["models"], "g": {"scores": "y"}}, "data": {"feed": {**FEED, "set": {"g": []}}}},
            "data.feed.set: 'g' is not trained on 'feed'; trained there: ",
        ),
        (
            {"models": {**STUDY["models"], "g": {"scores": "y", "data": ["fed"]}}},
            "models.g.data: data set 'fed' is",
        ),
        ({"models": {**STUDY["models"], "g": {"scores": "y", "data": []}}}, "at least 1 item"),
        (
            {"models": PARTLY, "data": {"feed": FEED, "more": FEED}, "reference": "bottom"},
            "reference 'bottom' is not on feed; it has to be on all data",
        ),
        (
            {"models": PARTLY, "data": {"feed": FEED, "more": {**FEED, "tuned_on": "feed"}}},
            "data.more.tuned_on: 'bottom' is not trained on 'feed'",
        ),
        ({"seeds": 2**70}, "'seeds': Input should be less than or equal to 1000"),
        ({"samples": 2**70}, "'samples': Input should be less than or equal to 1000000"),
        ({"data": {"feed": {**FEED, "world": {"preset": ["helps"]}}}}, "has a preset"),
        ({"data": {"feed": {**FEED, "schema": "a\0b"}}}, "a path has no null characters"),
        ({"space": {"model.dropout": {"low": 1, "high": 0}}}, "low < high"),
        ({"space": {"model.dropout": {"low": 0, "high": 1, "choices": [1]}}}, "stands alone"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(tmp_path, change, said):
    with pytest.raises(UserError) as error:
        study(tmp_path, **change)
    assert said in str(error.value)


def test_240_resamples_can_decide_6_comparisons_and_239_cannot(tmp_path):
    # The smallest p-value is 2 / (samples + 1), times 6 by Holm: below .05 from 240 on (12 / 241 = .0498).
    assert study(tmp_path, samples=240).samples == 240
    with pytest.raises(UserError, match="at least 240"):
        study(tmp_path, samples=239)


def test_comparisons_are_counted_where_they_are_made(tmp_path):
    data = {"feed": FEED, "more": FEED}
    assert study(tmp_path, models=PARTLY, data=data, samples=240)  # 3 on feed, 6 on more
    both = {**PARTLY, "outside": {"scores": "x", "data": ["feed"]}}  # 6 and 6
    assert study(tmp_path, models=both, data=data, samples=240)
    with pytest.raises(UserError, match="240 resamples cannot decide 9 comparisons"):
        study(tmp_path, models={**both, "outside": {"scores": "x"}}, data=data, samples=240)


def test_a_part_of_a_study_keeps_what_it_needs(tmp_path):
    found = select(study(tmp_path), models=["mkt"], seeds=1, assign=("a=1",))
    assert set(found.models) == {"mkt", "stage1", "single"}
    assert (found.seeds, found.on_top) == (1, ("a=1",))
    for seeds in (0, 1001):
        with pytest.raises(UserError, match=f"--seeds {seeds}: 1 to 1000"):
            select(study(tmp_path), seeds=seeds)
    with pytest.raises(UserError, match="--models: 'mtk' is not known; known are: mkt, single, bottom, stage1"):
        select(study(tmp_path), models=["mtk"])
    with pytest.raises(UserError, match="--data: 'fed' is not known; known are: feed"):
        select(study(tmp_path), data=["fed"])


def test_cells_come_after_what_they_begin_with(tmp_path):
    found = cells(study(tmp_path), tmp_path, tmp_path / "out")
    places = {cell.name: place for place, cell in enumerate(found)}
    assert len(found) == 8
    assert all(places[cell.before] < places[cell.name] for cell in found if cell.before)
    assert {cell.before for cell in found} == {None, "feed/0/stage1", "feed/1/stage1"}


def test_assignments_go_from_the_study_to_the_model_to_the_data(tmp_path):
    data = {"feed": {"task": "click@post", "set": {"bottom": ["loader.batch_size=32"]}}}
    found = cells(
        study(tmp_path, data=data, set=["optimizer.dense.lr=0.5", "loader.batch_size=64"]), tmp_path, tmp_path / "out"
    )
    configs = {cell.model: cell.config for cell in found}
    assert (configs["bottom"].optimizer.dense.lr, configs["bottom"].loader.batch_size) == (0.02, 32)
    assert (configs["single"].optimizer.dense.lr, configs["single"].loader.batch_size) == (0.5, 64)


def test_the_command_line_has_the_last_word(tmp_path):
    """Also over what was tuned; seeds and parents are the study's."""
    data = {"feed": {"task": "click@post", "set": {"bottom": ["loader.batch_size=32"]}}}
    found = study(tmp_path, data=data, models={"bottom": STUDY["models"]["bottom"]}, reference="bottom")
    tuned = Tuned(study="study", trials=1, best={"feed": {"bottom": ("trainer.epochs=4",)}})
    given = ("optimizer.dense.lr=0.3", "loader.batch_size=16", "trainer.epochs=5")
    for cell in cells(select(found, assign=given), tmp_path, tmp_path / "out", tuned):
        config = cell.config
        assert (config.optimizer.dense.lr, config.loader.batch_size, config.trainer.epochs) == (0.3, 16, 5)
    for each in ("seed=5", "init_from=elsewhere"):
        with pytest.raises(UserError, match=f"--set {each}: every run has a seed of its own"):
            select(found, assign=[each])
    with pytest.raises(UserError, match="'on_top': it is never written"):
        study(tmp_path, on_top=["a=1"])


@pytest.mark.parametrize(
    ("domains", "wanted"), [("target", ["post"]), ("source", ["items"]), ("all", ["items", "video", "post"])]
)
def test_a_model_reads_domains_by_their_role(tmp_path, domains, wanted):
    models = {**STUDY["models"], "bottom": {"config": "bottom.yaml", "domains": domains, "shown": False}}
    found = next(c for c in cells(study(tmp_path, models=models), tmp_path, tmp_path) if c.model == "bottom")
    assert list(found.config.schema_in_use.domains) == wanted


def test_a_model_that_does_not_predict_the_task_is_no_opponent(tmp_path):
    models = {**STUDY["models"], "bottom": {"config": "bottom.yaml", "domains": "source"}}
    with pytest.raises(UserError, match=r"feed/bottom: does not predict 'click@post' but click@items; set shown: fal"):
        cells(study(tmp_path, models=models), tmp_path, tmp_path)


def test_a_run_from_outside_of_the_study_is_refused(tmp_path):
    models = {**STUDY["models"], "mkt": {"config": "stage2.yaml"}}
    with pytest.raises(UserError, match="init_from is somewhere/else, a run outside of the study: set parent"):
        cells(study(tmp_path, models=models), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("key", "choices"),
    [("model.warm_start", [True, False]), ("loader.curriculum", [[], [{"epochs": 1, "shares": "sources"}]])],
)
def test_a_choice_may_be_any_value_that_a_setting_takes(tmp_path, key, choices):
    assert list(study(tmp_path, space={key: {"choices": choices}}).space[key].choices) == choices
