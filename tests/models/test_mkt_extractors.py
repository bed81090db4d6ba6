"""MKT with another extractor, and what stage 1's further settings change."""

import pytest
import torch
from pydantic import ValidationError

from tests.support.domain_batches import as_mixed, only
from tests.support.small_models import EMBEDDINGS, idle
from tests.support.unsharded import materialise
from torchrec_xd.errors import UserError
from torchrec_xd.losses import cosine
from torchrec_xd.models.mkt import (
    TRANSFER,
    FinetuneSettings,
    PretrainSettings,
    build_finetune,
    build_pretrain,
)
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema

SMALL = {"expert_widths": (6, 5), "aligned_dim": 3, "tower_widths": (8,)}
OPTIONS = {
    "star": {"extractor": "star"},
    "mmoe": {"extractor": "mmoe", "num_shared_experts": 3},
    "linear": {"knowledge_activation": "linear", "levels": 2},
    "linear_star": {"extractor": "star", "knowledge_activation": "linear", "pdl": "squared"},
    "aligned": {"extractor_reads": "aligned"},
    "crosses": {"crosses": "with_shared"},
}


def mem(schema, **settings):
    torch.manual_seed(0)
    return materialise(build_pretrain(schema, PretrainSettings(**SMALL, **settings), EMBEDDINGS, seed=0))


def tem(schema, trained, **settings):
    torch.manual_seed(1)
    source = SourceRun(schema, PretrainSettings(**SMALL, **trained), EMBEDDINGS)
    own = FinetuneSettings(widths=(6,), head_widths=(4,), **settings)
    return materialise(build_finetune(schema.only(("post",)), own, EMBEDDINGS, 1, source))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_parameter_of_mem_learns(schema, batch, options):
    task = mem(schema, **options)
    task(batch).total_loss().backward()
    assert idle(task) == []


def taught(whole, student):
    """`student` with exactly the weights of `whole` that stage 2 declares; those that it leaves behind."""
    ours, theirs = student.state_dict(), whole.state_dict()
    names = {}
    for here, there in TRANSFER.prefixes.items():
        names.update({n: there + n.removeprefix(here) for n in ours if n.startswith(here)})
    student.load_state_dict({name: theirs[source] for name, source in names.items()}, strict=False)
    assert {n for n in ours if n.startswith("teacher.")} == set(names)
    return set(theirs) - set(names.values())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_stage_two_takes_what_serves_the_target_and_nothing_else(schema, batch, options):
    whole, student = mem(schema, **options), tem(schema, options)
    whole.train()(batch)  # moves STAR's running statistics
    pruned = taught(whole.eval(), student)
    assert all(name.startswith(TRANSFER.prunable) for name in pruned)
    teacher = student.teacher.net.state_dict()
    assert not any("m_items" in name or "m_video" in name for name in teacher if ".levels." not in name)
    target = only(schema, 32, "post")
    _, common = whole.net.common(whole.embeddings(as_mixed(target, schema)))
    torch.testing.assert_close(student.teacher(target)["common"], common["post"])


def test_star_gives_mem_a_star_and_star_towers(schema, batch):
    net, lookups = (task := mem(schema, extractor="star")).net, task.embeddings(batch)
    assert not hasattr(net.common, "ple")
    vectors, common = net.common(lookups)
    x = torch.cat([*vectors.values(), net.common.hfa(lookups)], dim=1)
    own = lookups.rows["post"]
    star = net.common.star
    torch.testing.assert_close(common["post"], star.mlp(star.norm(x[own], "post"), "post"))
    rows = torch.cat([torch.cat(list(vectors.values()), dim=1)[own], lookups.specific["post"].flatten(1)], dim=1)
    logit = net.towers.mlp(torch.cat([common["post"], net.independent["post"](rows)], dim=1), "post")
    torch.testing.assert_close(task(batch).score["click@post"], logit.squeeze(1).sigmoid())


def test_the_literal_equation_9_feeds_shared_and_aligned_alone(schema, batch):
    net, lookups = (task := mem(schema, extractor_reads="aligned")).net, task.embeddings(batch)
    _, common = net.common(lookups)
    q = torch.cat([lookups.groups["shared"], net.common.hfa(lookups)], dim=1)
    torch.testing.assert_close(common["post"], net.common.ple(q, lookups.rows)["post"])
    assert net.common.ple.last.gates["post"].linear.in_features == 4 + 3
    assert net.independent["post"][0].in_features > 4 + 3  # reads the user as before


def test_crosses_with_shared_features_change_scores_alone(schema, batch):
    net, lookups = (task := mem(schema, crosses="with_shared")).net, task.embeddings(batch)
    rows = lookups.rows["post"]
    spec, shared = lookups.specific["post"], lookups.groups["shared"][rows]
    hfa = net.common.hfa["post"]
    x0 = torch.cat([spec.flatten(1), shared], dim=1)
    x = x0
    for layer in range(2):
        x = x * (x0 @ hfa.cross_weight[layer]).unsqueeze(1) + hfa.cross_bias[layer] + x0
    score = 2 * torch.sigmoid(hfa.importance(torch.cat([x, torch.relu(hfa.implicit(x0))], dim=1)))
    expected = torch.relu(hfa.align((spec * score.unsqueeze(2)).flatten(1)))
    torch.testing.assert_close(net.common.hfa(lookups)[rows], expected)
    content = {**schema.model_dump(exclude_unset=True)}
    content["features"] = [f for f in content["features"] if f["group"] != "shared"]
    with pytest.raises(UserError, match=r"crosses: with_shared.*no feature of group shared: use specific"):
        mem(Schema.model_validate(content), crosses="with_shared")


def test_linear_knowledge_has_both_signs_and_cosines_too(schema, batch):
    plain, linear = mem(schema), mem(schema, knowledge_activation="linear")
    for task, least in ((plain, 0.0), (linear, -1.0)):
        pairs = task.net(task.embeddings(batch)).vectors
        knowledge = torch.cat([vector for pair in pairs.values() for vector in pair])
        cosines = torch.cat([cosine(*pair) for pair in pairs.values()])
        assert (knowledge.min() < 0) == (least < 0)
        assert (cosines.min() < 0) == (least < 0)
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in linear.named_parameters()}


@pytest.mark.parametrize(("pdl", "of"), [("cosine", lambda c: c), ("squared", torch.square), ("absolute", torch.abs)])
def test_pdl_averages_what_it_is_told_to(schema, batch, pdl, of):
    task = mem(schema, knowledge_activation="linear", pdl=pdl, gamma=0.3)
    pairs = task.net(task.embeddings(batch)).vectors
    expected = 0.3 * sum(of(cosine(*pair)).mean() for pair in pairs.values())
    output = task(batch)
    torch.testing.assert_close(output.loss["pdl"], expected)
    torch.testing.assert_close(output.monitors["cosine/post"], cosine(*pairs["post"]).mean())  # whatever the penalty


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extractor": "star", "levels": 2}, "levels: 2 is for extractor ple only; leave it out with extractor: star"),
        ({"extractor": "mmoe", "num_shared_experts": 2, "num_experts": 2}, "num_experts: 2 is for extractor ple only"),
        ({"extractor": "star", "num_shared_experts": 2}, "num_shared_experts: 2 is for extractor ple and mmoe only"),
        ({"extractor": "mmoe"}, "mixes num_shared_experts, and 1 leaves nothing to mix: set 2 or more"),
        ({"hfa": False, "crosses": "with_shared"}, "needs hfa: true"),
        ({"expert_widths": []}, "expert_widths"),
    ],
)
def test_a_setting_without_a_use_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        PretrainSettings(**settings)
