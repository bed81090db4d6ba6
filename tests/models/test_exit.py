"""EXIT: predictions, loss and gradients by hand, what scenes can reach, what each switch changes, misuse."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.placements import SETTINGS, TASKS, schema_at, write_placements
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.models.exit import build_exit
from torchrec_xd.models.exit_settings import ExitSettings
from torchrec_xd.outputs import score_matrix
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate

EMBEDDINGS = EmbeddingSettings(init_std=0.5)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return Schema.model_validate(schema_at(write_placements(tmp_path_factory.mktemp("placements"))))


@pytest.fixture(scope="module")
def home(both):
    return both.only(("home",))


@pytest.fixture(scope="module")
def batch(home):
    return batch_of(home)


def batch_of(schema, rows=64):
    return next(iter(Loader(schema, LoaderSettings(batch_size=rows), "train").batches()))


def exit_model(schema, **changes):
    torch.manual_seed(0)
    return materialise(build_exit(schema, ExitSettings(**{**SETTINGS, **changes}), EMBEDDINGS, seed=0))


def columns(schema, batch):
    """Labels by task name."""
    return {task.name: batch.label_BT[:, i] for i, task in enumerate(schema.tasks)}


def combination(schema, batch):
    """The interest combination label."""
    label = columns(schema, batch)
    return label["click@home"] + sum(label[f"wanted_{k}@home"] * label[f"fit_{k}@home"] for k in ("search", "map"))


def with_selector_logits(task, batch):
    """The output for a batch, and the selector's logits, which keep their gradient."""
    kept = {}
    task.net.selector.register_forward_hook(lambda module, given, out: kept.update(logit=out) or out.retain_grad())
    return kept, task(batch)


def bce(prob, label, weight):
    return -(weight * (label * prob.log() + (1 - label) * (1 - prob).log())).sum()


def test_the_whole_prediction_is_the_target_interest_and_what_passes_of_the_sources(home, batch):
    score = exit_model(home)(batch).score
    whole = score["click@home/target"] + score["wanted_search@home"] * score["fit_search@home"]
    torch.testing.assert_close(score["click@home"], whole + score["wanted_map@home"] * score["fit_map@home"])
    assert all((score[task] > 0).all() and (score[task] < 1).all() for task in score if task != "click@home")


def test_the_joint_loss_by_hand(home, batch):
    weights = {"target_weight": 0.5, "source_weight": 2.0, "transfer_weight": 3.0}
    output = exit_model(home, **weights)(batch)
    loss = output.total_loss()
    label, score, weight = columns(home, batch), output.score, batch.weight_B
    assert weight.unique().tolist() == [1.0, 4.0]
    icl = combination(home, batch)
    assert icl.unique().tolist() == [0, 1, 2, 3]
    expected = 0.5 * bce(score["click@home/target"], label["click@home"], weight)
    expected = expected + 2 * sum(
        bce(score[f"wanted_{k}@home"], label[f"wanted_{k}@home"], weight) for k in ("search", "map")
    )
    expected = expected + 3 * (weight * (score["click@home"] - icl).abs()).sum()
    torch.testing.assert_close(loss, expected / 64)
    assert set(output.loss) == {"bce/click@home", "bce/wanted_search@home", "bce/wanted_map@home", "transfer"}


def transfer_terms(output, label, error):
    """By hand: `error(P_tr, c)` of rows with `y_s = 1`."""
    return sum(
        (label[f"wanted_{k}@home"] * error(output.score[f"fit_{k}@home"], label[f"fit_{k}@home"]))
        for k in ("search", "map")
    )


ERRORS = {
    "absolute": lambda value, label: (value - label).abs(),
    "squared": lambda value, label: (value - label) ** 2,
    "cross_entropy": lambda value, label: -(label * value.log() + (1 - label) * (1 - value).log()),
}


@pytest.mark.parametrize("error", ERRORS)
def test_the_transfer_term_holds_what_passes_against_what_is_fit_where_it_was_wanted(home, batch, error):
    output = exit_model(home, transfer_on="transfer", transfer_error=error, transfer_weight=3.0)(batch)
    expected = 3 * (batch.weight_B * transfer_terms(output, columns(home, batch), ERRORS[error])).sum()
    torch.testing.assert_close(output.loss["transfer"], expected / 64)


def test_the_squared_error_of_the_whole_prediction(home, batch):
    output = exit_model(home, transfer_error="squared")(batch)
    expected = (batch.weight_B * (output.score["click@home"] - combination(home, batch)) ** 2).sum()
    torch.testing.assert_close(output.loss["transfer"], expected / 64)


SLOPES = {
    "absolute": lambda value, label: (value - label).sign() * value * (1 - value),
    "squared": lambda value, label: 2 * (value - label) * value * (1 - value),
    "cross_entropy": lambda value, label: value - label,
}


@pytest.mark.parametrize("error", SLOPES)
def test_its_gradient_on_the_logits_of_the_selector(home, batch, error):
    """Of the cross entropy it is `P_tr - c`, which does not vanish where P_tr is near 0 or 1."""
    kept, output = with_selector_logits(
        exit_model(home, target_weight=0.0, source_weight=0.0, transfer_on="transfer", transfer_error=error), batch
    )
    output.total_loss().backward()
    label = columns(home, batch)
    for k, name in enumerate(("search", "map")):
        slope = SLOPES[error](output.score[f"fit_{name}@home"], label[f"fit_{name}@home"])
        expected = batch.weight_B / 64 * label[f"wanted_{name}@home"] * slope
        torch.testing.assert_close(kept["logit"].grad[:, k], expected)


def test_the_cross_entropy_of_a_closed_selector_keeps_its_gradient(home, batch):
    task = exit_model(home, transfer_on="transfer", transfer_error="cross_entropy")
    with torch.no_grad():
        task.net.selector.out.bias.fill_(-200.0)  # P_tr is 0 in fp32
    kept, output = with_selector_logits(task, batch)
    output.loss["transfer"].backward()
    label = columns(home, batch)
    fitting = torch.stack([label[f"wanted_{k}@home"] * label[f"fit_{k}@home"] for k in ("search", "map")], dim=1)
    torch.testing.assert_close(kept["logit"].grad, -batch.weight_B[:, None] / 64 * fitting)


def test_what_cannot_be_compared_is_refused():
    def settings(**changes):
        return validate(ExitSettings, {**SETTINGS, **changes}, "run.yaml")

    with pytest.raises(
        UserError, match=r"y_icl.* may exceed 1.*transfer_error: absolute or squared.*transfer_on: tran"
    ):
        settings(transfer_error="cross_entropy")
    for changes in ({"transfer_on": "transfer"}, {"transfer_error": "squared"}):
        with pytest.raises(UserError, match=r"icl: false has no transfer term.*transfer_on and transfer_error out"):
            settings(icl=False, **changes)
    with pytest.raises(UserError, match=r"icl: false learns y_t by the cross entropy of the whole prediction already"):
        settings(icl=False, target_on="whole")
    with pytest.raises(UserError, match=r"transfer_loss is the old name of transfer_on.*not both"):
        settings(transfer_loss="whole", transfer_on="transfer")
    with pytest.raises(UserError, match=r"transfer_on.*'whole' or 'transfer'"):
        settings(transfer_loss="half")


def test_the_old_name_of_what_is_compared_still_reads():
    """Configs and run folders of version 0.1.0 say `transfer_loss`; with `icl: false` it meant nothing."""
    assert validate(ExitSettings, {**SETTINGS, "transfer_loss": "transfer"}, "r").transfer_on == "transfer"
    assert validate(ExitSettings, {**SETTINGS, "transfer_loss": "whole"}, "r") == ExitSettings(**SETTINGS)
    assert validate(ExitSettings, {**SETTINGS, "transfer_loss": "transfer", "icl": False}, "r").transfer_on == "whole"
    assert "transfer_loss" not in ExitSettings(**SETTINGS).model_dump()


def test_without_labels_of_interest_the_whole_learns_the_click(home, batch):
    output = exit_model(home, icl=False)(batch)
    prob, label = output.score["click@home"], columns(home, batch)["click@home"]
    assert prob.min() < 1 < prob.max()
    below, above = prob.clamp(max=0.9), (prob - 0.9).clamp(min=0)
    cost = (1 - label) * (-(1 - below).log() + 10 * above) - label * prob.clamp(max=1 - 2.0**-23).log()
    torch.testing.assert_close(output.loss["transfer"], (batch.weight_B * cost).sum() / 64)
    parts = exit_model(home)(batch)
    for name in output.loss.keys() - {"transfer"}:
        assert torch.equal(output.loss[name], parts.loss[name])
    assert all(torch.equal(output.score[task], parts.score[task]) for task in output.score)


def test_the_whole_prediction_may_learn_the_click_with_its_transfer_term(home, batch):
    changes = {"transfer_on": "transfer", "transfer_error": "cross_entropy", "source_weight": 2.0}
    output = exit_model(home, **changes, target_on="whole", target_weight=0.5)(batch)
    tower, whole = exit_model(home, **changes)(batch).loss, exit_model(home, icl=False)(batch).loss["transfer"]
    torch.testing.assert_close(output.loss["bce/click@home"], 0.5 * whole)
    assert all(torch.equal(output.loss[name], tower[name]) for name in tower if name != "bce/click@home")


def test_the_gradient_of_the_label_loss_moves_each_part_towards_the_label(home, batch):
    """d|P - y| / dP is the sign of P - y: the transfer logits get it times `P_s P_tr (1 - P_tr)`."""
    task = exit_model(home, target_weight=0.0, source_weight=0.0)
    kept, output = with_selector_logits(task, batch)
    output.total_loss().backward()
    score, icl = output.score, combination(home, batch)
    for k, name in enumerate(("search", "map")):
        passed = score[f"fit_{name}@home"]
        slope = score[f"wanted_{name}@home"] * passed * (1 - passed)
        expected = batch.weight_B / 64 * (score["click@home"] - icl).sign() * slope
        torch.testing.assert_close(kept["logit"].grad[:, k], expected)


def test_without_labels_of_interest_negative_rows_above_one_are_pulled_down(home, batch):
    task = exit_model(home, icl=False)
    with torch.no_grad():
        for tower in task.net.ipn.towers.children():
            tower[1].bias.fill_(9.0)
        task.net.selector.out.bias.fill_(9.0)
    kept, output = with_selector_logits(task, batch)
    assert (output.score["click@home"] > 2.9).all()
    label = columns(home, batch)["click@home"]
    negatives = (batch.weight_B * (1 - label) * (math.log(10) + 10 * (output.score["click@home"] - 0.9))).sum()
    torch.testing.assert_close(output.loss["transfer"], negatives / 64, rtol=1e-5, atol=0)  # positives: 2^-23 each
    output.loss["transfer"].backward()
    passed = output.score["fit_map@home"]
    slope = batch.weight_B / 64 * (1 - label) * 10 * output.score["wanted_map@home"] * passed * (1 - passed)
    torch.testing.assert_close(kept["logit"].grad[:, 1], slope)
    assert (slope > 0).sum() == (label == 0).sum()


def test_scenes_reach_the_selector_alone_and_through_tables_of_their_own(home, batch):
    task = exit_model(home)
    scenes = {"slot", "place"}
    changed = exit_model(home)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if any(f"t_{scene}" in name for scene in scenes):
                parameter.add_(1.0)
    before, after = task(batch).score, changed(batch).score
    for k in ("search", "map"):
        assert torch.equal(before[f"wanted_{k}@home"], after[f"wanted_{k}@home"])
        assert not torch.equal(before[f"fit_{k}@home"], after[f"fit_{k}@home"])
    assert torch.equal(before["click@home/target"], after["click@home/target"])
    output = task(batch)
    sum(part for name, part in output.loss.items() if name != "transfer").backward()
    moved = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any("selector" in name or f"t_{scene}" in name for name in moved for scene in scenes)
    assert any("t_item" in name for name in moved)


def test_towers_read_the_scene_where_they_are_told_to(home, batch):
    def moved(**changes):
        task = exit_model(home, scene_to_towers=True, **changes)
        output = task(batch)
        sum(part for name, part in output.loss.items() if name != "transfer").backward()
        found = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        return task, {scene for scene in ("slot", "place") if any(f"t_{scene}" in name for name in found)}

    task, scenes = moved()
    assert scenes == {"slot", "place"}
    widths = [net.net.ipn.towers["click@home"][0][0].in_features for net in (exit_model(home), task)]
    assert widths[1] - widths[0] == 2 * 4  # two scenes
    inputs = [net.net.selector.hidden[0].in_features for net in (exit_model(home), task)]
    assert inputs[0] == inputs[1]  # the selector reads each scene once
    assert moved(ssn=False)[1] == {"slot", "place"}
    with pytest.raises(UserError, match=r"scene_to_towers: no feature has the group scene"):
        exit_model(home.without(("slot", "place")), ssn=False, scene_to_towers=True)


def test_without_the_selector_one_constant_serves_all_rows(home, batch):
    output = exit_model(home, ssn=False)(batch)
    for k in ("search", "map"):
        assert output.score[f"fit_{k}@home"].tolist() == [0.5] * 64
        assert output.monitors[f"transfer/{k}"] == 0.5
    full = exit_model(home)(batch)
    assert output.score["wanted_map@home"].shape == full.score["wanted_map@home"].shape
    plain = dict(exit_model(home, ssn=False).named_parameters())
    assert [name for name in plain if "selector" in name] == ["net.selector.logit_K"]


def test_weights_of_rows_count(home, batch):
    task = exit_model(home)
    twice = replace(batch, weight_B=2 * batch.weight_B)
    torch.testing.assert_close(task(twice).total_loss(), 2 * task(batch).total_loss())


def own(sources=SETTINGS["sources"]):
    return {**sources, "search": {**sources["search"], "own": "click@search"}}


def test_a_sources_own_rows_feed_its_tower_and_nothing_else(both):
    batch = batch_of(both)
    rows = batch.rows(0)
    task = exit_model(both, sources=own())
    output = task(batch)
    prob, label = output.score["click@search"], batch.label_BT[rows, 0]
    torch.testing.assert_close(output.loss["bce/click@search"], bce(prob, label, batch.weight_B[rows]) / len(batch))
    assert len(output.score["click@home"]) == len(batch) - len(prob)
    output.loss["bce/click@search"].backward()
    moved = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    net = {name for name in moved if name.startswith("net.")}
    assert any(name.startswith("net.ipn.towers.m_search") for name in net)
    assert all(name.startswith(("net.ipn.towers.m_search", "net.vectors")) for name in net)


def test_views_stand_behind_the_tasks_in_what_metrics_read(home, batch):
    output = exit_model(home)(batch)
    matrix = score_matrix(home, batch, output, {"click@home/target": "click@home"})
    assert matrix.shape == (64, len(TASKS) + 1)
    torch.testing.assert_close(matrix[:, 0], output.score["click@home"])
    torch.testing.assert_close(matrix[:, -1], output.score["click@home/target"])


MAP = SETTINGS["sources"]["map"]


@pytest.mark.parametrize(
    ("settings", "tasks", "message"),
    [
        ({"target": "buy@home"}, TASKS, "names task 'buy@home'; tasks in use are: click@home, wanted_search@home"),
        (
            {"sources": {"map": MAP}},
            TASKS,
            r"does not use task 'wanted_search@home'; leave it out: tasks: \[click@home, ",
        ),
        ({"sources": own()}, TASKS, "names task 'click@search'"),
        (
            {"sources": {"map": {**MAP, "own": "wanted_search@home"}}},
            [TASKS[0], TASKS[1], *TASKS[3:]],
            r"sources\.map\.own: 'wanted_search@home' lies in 'home', not in a source domain",
        ),
    ],
)
def test_tasks_that_do_not_fit_are_refused(home, settings, tasks, message):
    with pytest.raises(UserError, match=message):
        exit_model(home.only_tasks(tuple(tasks)), **settings)


def test_a_label_of_other_rows_is_refused(both):
    swapped = {"map": {"wanted": "click@search", "fit": "fit_map@home"}}
    with pytest.raises(UserError, match=r"sources\.map: 'click@search' must be a label of the rows of 'click@home'"):
        exit_model(both.only_tasks(("click@search", "click@home", "fit_map@home")), sources=swapped)


def test_features_that_it_has_no_use_for_are_refused(home):
    with pytest.raises(UserError, match="selects by scene"):
        exit_model(home.without(("slot", "place")))
    assert exit_model(home.without(("slot", "place")), ssn=False)
    features = [
        f.model_copy(update={"group": "specific", "domains": ("home",)}) if f.column == "hour" else f
        for f in home.features
    ]
    with pytest.raises(UserError, match=r"no use for specific features \(hour\)"):
        exit_model(home.model_copy(update={"features": tuple(features)}))


def test_a_vector_as_scene_needs_the_network_that_reads_it(home):
    vector = Feature(column="view", kind="vector", group="scene", length=3)
    schema = home.model_copy(update={"features": (*home.features, vector)})
    assert exit_model(schema)
    with pytest.raises(UserError, match=r"reads no scene, and has no use for the vector 'view'; .*without: \[view\]"):
        exit_model(schema, ssn=False)
    assert exit_model(schema, ssn=False, scene_to_towers=True)


def test_it_needs_a_source():
    with pytest.raises(UserError, match="sources"):
        validate(ExitSettings, {"target": "click@home", "sources": {}}, "run.yaml")
