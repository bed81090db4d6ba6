"""Equal budgets, judged on the validation split; stopped and resumed searches are those that were never stopped."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.study.conftest import STUDY, write_study
from torchrec_xd.errors import UserError
from torchrec_xd.study import tuning
from torchrec_xd.study.cells import cells
from torchrec_xd.study.comparison import run_study
from torchrec_xd.study.design import Tuned, load_study, load_tuned, select
from torchrec_xd.study.tuning import tune


@pytest.fixture(scope="module")
def part(lab):
    return select(load_study(lab), models=["mkt"])


@pytest.fixture(scope="module")
def tuned(lab, part, tmp_path_factory):
    """Folder of two trials of every model, then of a third one; and what was found after two."""
    out = tmp_path_factory.mktemp("tune")
    assert tune(part, lab, out, 2, workers=2) == {}
    after_two = load_tuned(out / "tuned.json")
    assert tune(part, lab, out, 3) == {}
    return out, after_two


def test_every_model_gets_its_budget_and_no_trial_is_made_twice(tuned):
    out, after_two = tuned
    found = load_tuned(out / "tuned.json")
    assert (after_two.trials, found.trials) == (2, 3)
    for model in ("mkt", "single", "stage1"):
        before, after = after_two.searches["feed"][model], found.searches["feed"][model]
        assert [trial.number for trial in after] == [0, 1, 2]
        assert after[:2] == before
        assert len({trial.assign for trial in after}) == 3
        best = max(after, key=lambda trial: trial.score)
        assert found.best["feed"][model] == best.assign


def test_the_first_trial_is_the_config_as_it_is(tuned):
    for trials in load_tuned(tuned[0] / "tuned.json").searches["feed"].values():
        assert trials[0].assign == ("optimizer.dense.lr=0.01", "model.dropout=0.0")


def test_a_search_does_not_depend_on_where_it_was_stopped(tuned, lab, part, tmp_path):
    alone = select(part, models=["single"])
    tune(alone, lab, tmp_path, 3)
    found, wanted = (load_tuned(out / "tuned.json").searches["feed"]["single"] for out in (tmp_path, tuned[0]))
    assert [(trial.assign, trial.score) for trial in found] == [(trial.assign, trial.score) for trial in wanted]


def test_trials_are_judged_on_the_validation_split(tuned):
    out, _ = tuned
    for model, trials in load_tuned(out / "tuned.json").searches["feed"].items():
        for trial in trials:
            content = json.loads((out / "feed" / model / f"{trial.number:03d}" / "metrics.json").read_text())
            assert content["split"] == "valid"
            assert content["eval"]["click@post"]["auc"] == trial.score


def test_a_model_parent_the_best_run_of_the_one_before_and_only_that_is_kept(tuned):
    out, after_two = tuned
    best = max(after_two.searches["feed"]["stage1"], key=lambda trial: trial.score).number
    manifest = json.loads((out / "feed" / "mkt" / "000" / "transfer.json").read_text())
    assert Path(manifest["from"]).parts[-3:-1] == (f"{best:03d}", "checkpoints")
    for model, trials in load_tuned(out / "tuned.json").searches["feed"].items():
        kept = [trial.number for trial in trials if (out / "feed" / model / f"{trial.number:03d}/checkpoints").exists()]
        assert kept == [max(trials, key=lambda trial: trial.score).number]


def test_a_comparison_takes_what_was_found(tuned, lab, part):
    found = load_tuned(tuned[0] / "tuned.json")
    for cell in cells(part, lab.parent, lab.parent / "tuned", found):
        values = dict(text.split("=") for text in found.of("feed", cell.model))
        assert cell.config.optimizer.dense.lr == float(values["optimizer.dense.lr"])
        assert cell.config.model.dropout == float(values["model.dropout"])
        assert cell.config.evaluate_on == "test"
    with pytest.raises(UserError, match=r"tuned settings of feed: model 'bottom' is not known; known are: "):
        cells(load_study(lab), lab.parent, lab.parent / "tuned", found)


def test_settings_found_on_other_data_may_be_used(tuned, lab, part):
    found = load_tuned(tuned[0] / "tuned.json")
    elsewhere = part.data["feed"].model_copy(update={"tuned_on": "feed"})
    both = part.model_copy(update={"data": {**part.data, "elsewhere": elsewhere}})
    configs = {(cell.data, cell.model, cell.seed): cell.config for cell in cells(both, lab.parent, lab.parent, found)}
    for (data, model, seed), config in configs.items():
        assert config.optimizer == configs["feed", model, seed].optimizer, data
    assert {data for data, _, _ in configs} == {"feed", "elsewhere"}
    with pytest.raises(UserError, match=r"data\.feed\.tuned_on: data set 'fed' is not known; known are: feed"):
        load_study(write_study(lab.parent, {"data": {"feed": {"task": "click@post", "tuned_on": "fed"}}}, "other"))


def test_a_comparison_is_repeated_from_its_results(tuned, lab, part, tmp_path):
    """With the settings of other data under the name of both."""
    found, path = load_tuned(tuned[0] / "tuned.json"), tmp_path / "results.json"
    elsewhere = part.data["feed"].model_copy(update={"tuned_on": "feed"})
    study = part.model_copy(update={"data": {"elsewhere": elsewhere}})
    assert run_study(study, lab, tmp_path, tuned=found) == {}
    again = load_tuned(path)
    assert (again.trials, again.best) == (found.trials, {"feed": found.best["feed"], "elsewhere": found.best["feed"]})
    assert cells(study, lab.parent, tmp_path, again) == cells(study, lab.parent, tmp_path, found)
    path.write_text(json.dumps({**json.loads(path.read_text()), "tuned": None}))
    with pytest.raises(UserError, match=r"results\.json: this comparison was of models as their configs are; leave"):
        load_tuned(path)


def test_data_that_take_the_settings_of_others_are_not_searched(tuned, lab, part, tmp_path):
    elsewhere = part.data["feed"].model_copy(update={"tuned_on": "feed"})
    shutil.copytree(tuned[0], tmp_path / "tune")
    found = (tmp_path / "tune" / "tuned.json").read_bytes()
    both = part.model_copy(update={"data": {**part.data, "elsewhere": elsewhere}})
    assert tune(both, lab, tmp_path / "tune", 3) == {}
    assert (tmp_path / "tune" / "tuned.json").read_bytes() == found
    alone = part.model_copy(update={"data": {"elsewhere": elsewhere}})
    with pytest.raises(
        UserError, match=r"nothing to tune: all data take the settings of others \(tuned_on: elsewhere: fee"
    ):
        tune(alone, lab, tmp_path / "tune", 3)
    assert (tmp_path / "tune" / "tuned.json").read_bytes() == found


def test_settings_of_models_that_are_not_tuned_now_stay(tuned, lab, part, tmp_path):
    """They were found with the same budget, or the command is refused."""
    shutil.copytree(tuned[0], tmp_path / "tune")
    alone, found = select(part, models=["single"]), load_tuned(tuned[0] / "tuned.json")
    assert tune(alone, lab, tmp_path / "tune", 3) == {}
    assert load_tuned(tmp_path / "tune" / "tuned.json") == found
    with pytest.raises(
        UserError, match=r"also holds settings of feed/stage1, feed/mkt, found for 'study' with 3 trials ea"
    ):
        tune(alone, lab, tmp_path / "tune", 4)


def test_the_best_is_that_of_as_many_trials_as_are_said(tuned, lab, part, tmp_path):
    """Another model may have had more, which would be an unequal budget."""
    out, after_two = tuned
    shutil.copytree(out, tmp_path / "tune")
    assert tune(part, lab, tmp_path / "tune", 2) == {}
    assert load_tuned(tmp_path / "tune" / "tuned.json") == after_two


def test_trials_of_other_settings_are_not_mixed(tuned, lab, part):
    with pytest.raises(UserError, match="its trials were made with another config or space"):
        tune(select(part, assign=("optimizer.tables.lr=0.3",)), lab, tuned[0], 3)


@pytest.mark.parametrize("given", ["model.dropout=0.1", "optimizer.dense={lr: 0.1}", "evaluate_on=test"])
def test_what_every_trial_decides_is_not_assigned_by_the_command_line(tuned, lab, part, given):
    with pytest.raises(
        UserError, match=r"trials of 'single' choose their own values of the space \(optimizer\.dense\.lr, m"
    ):
        tune(select(part, assign=(given,)), lab, tuned[0], 3)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_trials_on_other_data_are_not_mixed(tuned, lab, part, split):
    file = lab.parent / "feed" / "post" / f"{split}.parquet"
    content = file.read_bytes()
    pq.write_table(pq.read_table(file).slice(0, 150), file)
    try:
        with pytest.raises(
            UserError, match=rf"/feed/single: its trials were made on other data:\n  {split} files of dom"
        ):
            tune(part, lab, tuned[0], 4)
    finally:
        file.write_bytes(content)


def test_a_journal_cut_in_its_last_line_goes_on(tuned, part, lab, tmp_path, capfd):
    out = tmp_path / "tune"
    shutil.copytree(tuned[0], out)
    journal = out / "tuning.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 6, "trial_id"')
    assert tune(part, lab, out, 3) == {}
    assert "tuning.journal: the last line was not finished" in capfd.readouterr().err
    assert load_tuned(out / "tuned.json") == load_tuned(tuned[0] / "tuned.json")


def test_a_trial_whose_end_was_cut_off_is_ended_again(tuned, part, lab, tmp_path):
    out = tmp_path / "tune"
    shutil.copytree(tuned[0], out)
    journal = out / "tuning.journal"
    *lines, last, _ = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines, last[:-5]]))
    assert tune(part, lab, out, 3) == {}
    found, before = (load_tuned(folder / "tuned.json") for folder in (out, tuned[0]))
    assert found.best == before.best
    assert [trial.score for trial in found.searches["feed"]["mkt"]] == [
        trial.score for trial in before.searches["feed"]["mkt"]
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [lines[0], lines[1][:-3], *lines[2:]], r"tuning.journal:2: no JSON object"),
        (lambda lines: [*lines[:-1], b"{}", b""], r"tuning.journal: no journal of trials"),
    ],
)
def test_a_damaged_journal_is_named(tuned, part, lab, tmp_path, change, said):
    lines = (tuned[0] / "tuning.journal").read_bytes().split(b"\n")
    (tmp_path / "tuning.journal").write_bytes(b"\n".join(change(lines)))
    with pytest.raises(UserError, match=said):
        tune(part, lab, tmp_path, 3)


@pytest.mark.parametrize(
    ("space", "said"),
    [({}, "space: nothing to tune for"), ({"model.drop": {"choices": [0.1]}}, "did you mean 'dropout'")],
)
def test_a_space_that_a_model_does_not_have_is_refused_before_anything_is_run(lab, tmp_path, space, said):
    (tmp_path / "feed").symlink_to(lab.parent / "feed")
    path = write_study(tmp_path, {"space": space, "models": {"single": STUDY["models"]["single"]}})
    with pytest.raises(UserError) as error:
        tune(load_study(path), path, tmp_path / "out", 1)
    assert said in str(error.value)
    assert not list(tmp_path.glob("out/feed/*"))


def test_a_draw_that_the_config_refuses_is_a_failed_trial(lab, tmp_path):
    """Settings that do not fit together: the other trials go on."""
    (tmp_path / "feed").symlink_to(lab.parent / "feed")
    widths = {"model.widths": {"choices": [[8, 4], [8, 0]]}}
    path = write_study(tmp_path, {"space": widths, "models": {"single": STUDY["models"]["single"]}})
    failed = tune(load_study(path), path, tmp_path / "out", 6)
    trials = load_tuned(tmp_path / "out" / "tuned.json").searches["feed"]["single"]
    refused = [trial for trial in trials if trial.assign == ("model.widths=[8, 0]",)]
    assert 0 < len(refused) < len(trials) == 6
    assert {f"feed/single/{trial.number:03d}" for trial in refused} == set(failed)
    assert all("'model.widths.1': Input should be greater than 0 (got 0)" in reason for reason in failed.values())
    assert all((trial.score is None) == (trial in refused) for trial in trials)


def test_whole_numbers_are_drawn_for_settings_that_are_whole(lab, tmp_path):
    (tmp_path / "feed").symlink_to(lab.parent / "feed")
    space = {"trainer.epochs": {"low": 1, "high": 3}, "model.dropout": {"low": 0, "high": 0.5}}
    path = write_study(tmp_path, {"space": space, "models": {"single": STUDY["models"]["single"]}})
    assert tune(load_study(path), path, tmp_path / "out", 4) == {}
    for trial in load_tuned(tmp_path / "out" / "tuned.json").searches["feed"]["single"]:
        epochs, dropout = (text.partition("=")[2] for text in trial.assign)
        assert epochs in ("1", "2", "3")
        assert "." in dropout


@pytest.mark.parametrize(
    ("space", "first", "outside"),
    [
        ({"model.dropout": {"choices": [0.5, 0.4, 0]}, "trainer.epochs": {"choices": [7, 8, 9, 2.0]}}, [0.0, 2], ""),
        ({"model.dropout": {"choices": [0.5, 0.1]}, "trainer.epochs": {"low": 1, "high": 3}}, None, "model.dropout"),
        ({"model.dropout": {"choices": [0.5, 0]}, "trainer.epochs": {"low": 3, "high": 9}}, None, "trainer.epochs"),
    ],
)
def test_the_config_itself_is_tried_first_or_it_is_said_that_it_is_not(
    lab, tmp_path, monkeypatch, capfd, space, first, outside
):
    (tmp_path / "feed").symlink_to(lab.parent / "feed")
    jobs = []
    monkeypatch.setattr(tuning, "work", lambda take, *_, **__: jobs.append(take()))
    monkeypatch.setattr(tuning, "_tuned", lambda *_: Tuned(study="study", trials=1, best={}))
    model = {**STUDY["models"]["single"], "set": ["trainer.epochs=2"]}
    path = write_study(tmp_path, {"space": space, "models": {"single": model}})
    tune(load_study(path), path, tmp_path / "out", 1)
    said = f"feed/single: its config lies outside of the space ({outside})"
    assert (said in capfd.readouterr().err) == bool(outside)
    if first:
        assert [jobs[0].config.model.dropout, jobs[0].config.trainer.epochs] == first
