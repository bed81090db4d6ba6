"""MKT's faults by name: each where it is planted, and not where it is not."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.batches import SCHEMA, batch_of
from tests.support.mkt_settings import MEM
from tests.support.small_models import EMBEDDINGS, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.config import load_run
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.diagnostics.explained import Explained
from torchrec_xd.diagnostics.knowledge import GateOpenness, KnowledgeCosines
from torchrec_xd.diagnostics.overfitting import Overfitting, overfitting
from torchrec_xd.diagnostics.worth import FeatureWorth, feature_worth
from torchrec_xd.models import MODELS
from torchrec_xd.modules.gates import GatedLinearUnit
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.outputs import Output
from torchrec_xd.training import diagnosis
from torchrec_xd.training.stage_scores import stage_scores


def named(diagnostic):
    values = diagnostic.values()
    return {finding.name: finding for finding in diagnostic.findings(values)}, values


def test_what_a_linear_map_explains():
    torch.manual_seed(0)
    x, noise = torch.randn(2000, 6), torch.randn(2000, 3)
    for y, share in ((2 + x @ torch.randn(6, 3), 1.0), (noise, 0.0), (x[:, :3] + noise, 0.5)):
        found = Explained()
        for part in range(0, 2000, 500):
            found.add(x[part : part + 500], y[part : part + 500])
        assert found.share() == pytest.approx(share, abs=0.05)
    few, constant = Explained(), Explained()
    few.add(x[:59], noise[:59])
    constant.add(x, torch.full((2000, 3), 1e4))
    assert few.share() is constant.share() is Explained().share() is None


class Common(nn.Module):
    def forward(self, x):
        return {}, {"post": x}


@pytest.mark.parametrize(
    ("independent", "asked", "found"),
    [
        ("own", True, []),
        ("same", True, ["knowledge_not_separated"]),
        ("same", False, []),  # gamma: 0 asks for nothing
        ("opposed", True, ["knowledge_not_separated"]),
        ("other units", True, ["width_merely_split"]),
    ],
)
def test_knowledge_that_is_not_told_apart(independent, asked, found):
    torch.manual_seed(0)
    common = torch.cat([torch.randn(800, 4).relu(), torch.zeros(800, 4)], dim=1)
    own = torch.cat([torch.zeros(800, 4), torch.randn(800, 4).relu()], dim=1)
    given = {"own": own, "same": 3 * common, "opposed": -common, "other units": 2 * common.flip(1)}[independent]
    net = nn.Module()
    net.common, net.independent = Common(), ModuleMap({"post": nn.Identity()})
    diagnostic = KnowledgeCosines(net, {}, asked=asked)
    net.common(common)
    net.independent["post"](given)
    findings, values = named(diagnostic)
    assert list(findings) == found
    assert diagnostic.parts(values)
    if independent == "other units":
        assert values["domains"]["post"]["mean"] == pytest.approx(0)
        assert "100% of the variance of the independent one" in findings["width_merely_split"].text


@pytest.fixture(scope="module")
def graded(schema):
    """A first stage that knows its labels: they are drawn from its own predictions, `topic` cut off from these."""
    torch.manual_seed(0)
    model = materialise(MODELS["mkt_pretrain"].build(schema, settings_of(**MEM), EMBEDDINGS, 0)).eval()
    dim, post = 4, model.net.common.hfa["post"]
    with torch.no_grad():
        post.align.weight[:, 2 * dim :] = 0
        model.net.independent["post"][0].weight[:, -dim:] = 0
        post.importance.weight.zero_()
        post.importance.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        batches = list(Loader(schema, LoaderSettings(batch_size=320), "train").batches(epochs=6))
        last = model.net.towers["click@post"][-1]
        logit = torch.cat([model.net(model.embeddings(batch)).logit["click@post"] for batch in batches])
        last.weight.mul_(2 / logit.std())
        last.bias.sub_(logit.mean()).mul_(2 / logit.std())
        for batch in batches:
            batch.label_BT[batch.rows(2), 2] = torch.bernoulli(model(batch, with_loss=False).score["click@post"])
    return SimpleNamespace(model=model, hfa=post, batches=batches, schema=schema)


@pytest.mark.parametrize(("bias", "found"), [(-1.0, []), (3.0, ["noise_turned_up"])])
def test_noise_that_hfa_turns_up(graded, bias, found):
    with torch.no_grad():
        graded.hfa.importance.bias[2] = bias
    diagnostic = FeatureWorth(graded.model.net, graded.schema)
    diagnosis.measure(graded.model, [diagnostic], graded.batches)
    findings, values = named(diagnostic)
    features = {each["feature"]: each for each in values["domains"]["post"]["features"]}
    assert features["topic"]["worth"] == features["topic"]["error"] == 0
    assert features["topic"]["score"] == pytest.approx(2 * torch.tensor(bias).sigmoid().item(), abs=1e-5)
    useful = max(features["style"], features["words"], key=lambda each: each["worth"])
    assert useful["worth"] > 4 * useful["error"] > 0
    assert [name for name, finding in findings.items() if finding.text.startswith("post:")] == found
    if found:
        assert "post: HFA turns up topic (score 1.91, worth 0.00000)" in findings["noise_turned_up"].text
    assert diagnostic.parts(values)


def test_the_worth_of_a_feature_is_that_of_its_values_in_other_rows(graded):
    """Against a batch whose column was dealt out anew before the lookup; rows weigh 0, 1, 2, 0, 1, …"""
    model, batch = graded.model, graded.batches[0]
    batch = replace(batch, weight_B=torch.arange(len(batch.weight_B)) % 3.0)
    diagnostic = FeatureWorth(model.net, graded.schema)
    diagnosis.measure(model, [diagnostic], [batch])
    random = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(batch.label_BT[batch.rows(i)]), generator=random) for i in range(3)]
    lookups = model.embeddings(batch)
    with torch.no_grad():
        before = model.net(lookups).logit["click@post"]
        lookups.specific["post"][:, 1] = lookups.specific["post"][orders[2], 1]
        after = model.net(lookups).logit["click@post"]
    label, weight = batch.label_BT[batch.rows(2), 2], batch.weight_B[batch.rows(2)]
    loss = nn.BCEWithLogitsLoss(reduction="none")
    gain = loss(after, label) - loss(before, label)
    words = next(f for f in diagnostic.values()["domains"]["post"]["features"] if f["feature"] == "words")
    expected = (weight @ gain / weight.sum()).item()
    assert words["worth"] == pytest.approx(expected, abs=1e-5)
    error = (weight * (gain - expected)).norm() / weight.sum()
    assert words["error"] == pytest.approx(error.item(), abs=1e-5)


STAGES = {"stage_1": 0.74, "stage_2": 0.70, "monitor": "auc"}


@pytest.mark.parametrize(
    ("bias", "stages", "found"),
    [
        (0.0, STAGES, ["stage_2_below_stage_1"]),
        (-12.0, STAGES, ["gating_failure", "stage_2_below_stage_1"]),
        (-12.0, {**STAGES, "stage_2": 0.738}, []),  # nothing is lost by it
        (-12.0, None, []),  # not on record
    ],
)
def test_gates_that_keep_an_informative_teacher_out(bias, stages, found):
    torch.manual_seed(0)
    net = nn.Module()
    net.gates = ModuleMap({"common": GatedLinearUnit(6, 4, bias=bias)})
    diagnostic = GateOpenness(net, stages)
    x, own = torch.randn(50, 6), torch.randn(50, 4)
    passed = net.gates["common"](x, own)
    findings, values = named(diagnostic)
    assert list(findings) == found
    share = (passed.norm(dim=1) / (passed.norm(dim=1) + own.norm(dim=1))).mean().item()
    assert values["gates"]["gates.common"]["share"] == pytest.approx(share, abs=1e-6)
    assert diagnostic.parts(values)
    if found:
        assert "auc on validation is 0.7000, that of stage 1 0.7400" in findings[found[0]].text


def test_without_hfa_no_feature_is_looked_at(schema):
    plain = MODELS["mkt_pretrain"].build(schema, settings_of(**MEM, hfa=False), EMBEDDINGS, 0)
    assert feature_worth(plain.net, schema) == []


def test_stages_are_compared_where_both_are_on_record(runs, tmp_path):
    for name, scores in {"mem": (0.7, 0.6), "tem": (0.5, 0.55)}.items():
        shutil.copytree(runs / name, tmp_path / name)
        lines = [json.dumps({"step": i, "valid": score}) for i, score in enumerate(scores)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = load_run(runs / "tem").model_copy(update={"init_from": tmp_path / "mem"})
    assert stage_scores(config, tmp_path / "tem") == {"stage_1": 0.7, "stage_2": 0.55, "monitor": "auc"}
    last = config.model_copy(update={"init_checkpoint": "last"})
    assert stage_scores(last, tmp_path / "tem")["stage_1"] == 0.6
    assert stage_scores(config.model_copy(update={"monitor": "gauc"}), tmp_path / "tem") is None
    assert stage_scores(config.model_copy(update={"init_from": tmp_path / "gone"}), tmp_path / "tem") is None
    assert stage_scores(load_run(runs / "single"), runs / "single") is None


@pytest.mark.parametrize(("remembered", "found"), [("coupon", ["target_overfitted"]), ("both", []), ("none", [])])
def test_a_target_that_is_remembered(remembered, found):
    torch.manual_seed(0)
    diagnostic = Overfitting(SCHEMA)

    def rows(own):
        """Scores that know labels a little, and of the domains that are `own` much."""
        label = torch.bernoulli(torch.full((3000, 3), 0.3))
        knows = {"click": 2.0 if own == "both" else 0.6, "redeem": 2.0 if own in ("coupon", "both") else 0.6}
        score = {
            f"{name}@{domain}": torch.sigmoid(label[part, i] * knows.get(name, 0.6) + torch.randn(1500))
            for i, (name, domain, part) in enumerate(
                [("click", "product", slice(0, 1500)), *((n, "coupon", slice(1500, 3000)) for n in ("redeem", "view"))]
            )
        }
        return batch_of((0, 1500, 3000), label), Output(score, {}, {})

    diagnostic.update(*rows("none"), {})
    diagnostic.update_training(*rows(remembered))
    findings, values = named(diagnostic)
    assert list(findings) == found
    assert values["tasks"]["click@product"]["target"] is False
    if found:
        quality = values["tasks"]["redeem@coupon"]
        assert f"AUC {quality['training']['auc']:.3f} on training rows" in findings["target_overfitted"].text
        assert "curriculum" in findings["target_overfitted"].remedy
    assert diagnostic.parts(values)


def test_rows_count_by_their_weights():
    """Two thirds of the rows weigh nothing, and their scores say the opposite: the others alone are measured."""
    torch.manual_seed(0)
    label, weight = torch.bernoulli(torch.full((60, 3), 0.5)), torch.arange(60) % 3.0 // 2
    known = torch.where(weight[:, None] > 0, label, 1 - label)
    score = {"click@product": known[:30, 0], "redeem@coupon": known[30:, 1], "view@coupon": known[30:, 2]}
    diagnostic = Overfitting(SCHEMA)
    diagnostic.update(batch_of((0, 30, 60), label, weight=weight), Output(score, {}, {}), {})
    assert {task["here"]["auc"] for task in diagnostic.values()["tasks"].values()} == {1.0}


def test_without_sources_or_training_rows_there_is_nothing_to_compare():
    assert overfitting(SCHEMA.only(("coupon",))) == []
    (alone,) = overfitting(SCHEMA)
    label = torch.bernoulli(torch.full((20, 3), 0.5))
    score = {name: torch.rand(10) for name in ("click@product", "redeem@coupon", "view@coupon")}
    alone.update(batch_of((0, 10, 20), label), Output(score, {}, {}), {})
    assert named(alone)[0] == {}
