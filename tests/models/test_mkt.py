import pytest
import torch

from tests.support.domain_batches import as_mixed, only
from tests.support.feeds import SCHEMA
from tests.support.unsharded import materialise
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.losses import polarized_distribution_loss
from torchrec_xd.models.mkt import FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema

SMALL = {"expert_widths": (6, 5), "aligned_dim": 3, "tower_widths": (4,)}
EMBEDDINGS = EmbeddingSettings(init_std=0.5)


def mem(schema, **settings):
    torch.manual_seed(0)
    return materialise(build_pretrain(schema, PretrainSettings(**SMALL, **settings), EMBEDDINGS, seed=0))


def test_the_loss_is_each_domains_bce_over_all_rows_and_gamma_pdl(schema, batch):
    task = mem(schema, gamma=0.3)
    output = task(batch)
    loss = output.total_loss()
    lookups = task.embeddings(batch)
    vectors, common = task.net.common(lookups)
    rows = torch.cat(list(vectors.values()), dim=1)
    expected, pairs = 0.0, {}
    for i, domain in enumerate(schema.domains):
        own = batch.rows(i)
        specific = lookups.specific[domain].flatten(1)
        independent = task.net.independent[domain](torch.cat([rows[own], specific], dim=1))
        logit = task.net.towers[f"click@{domain}"](torch.cat([common[domain], independent], dim=1)).squeeze(1)
        label = batch.label_BT[own, i]
        torch.testing.assert_close(output.score[f"click@{domain}"], logit.sigmoid())
        expected += torch.where(label == 1, -logit.sigmoid().log(), -(1 - logit.sigmoid()).log()).sum() / len(batch)
        pairs[domain] = common[domain], independent
    cosines = polarized_distribution_loss(pairs)
    torch.testing.assert_close(loss, expected + 0.3 * sum(cosines.values()))
    assert {f"cosine/{domain}": cosine for domain, cosine in cosines.items()} == output.monitors


def test_domain_weight_scales_that_domains_part_alone(schema, batch):
    plain, weighted = mem(schema)(batch).loss, mem(schema, domain_weight={"post": 3.0})(batch).loss
    torch.testing.assert_close(weighted["bce/click@post"], 3 * plain["bce/click@post"])
    torch.testing.assert_close(weighted["bce/click@items"], plain["bce/click@items"])
    with pytest.raises(UserError, match=r"unknown domain 'posts'.*items, video, post"):
        mem(schema, domain_weight={"posts": 3.0})


def test_a_batch_without_some_domains_trains_the_others(schema):
    task, absent = mem(schema), as_mixed(only(schema, 32, "post"), schema)
    assert absent.offsets == (0, 0, 0, len(absent))
    output = task(absent)
    loss = output.total_loss()
    assert output.loss["bce/click@items"].item() == output.loss["bce/click@video"].item() == 0.0
    assert list(output.monitors) == ["cosine/post"]  # a curve of the others would say that they differ
    loss.backward()
    gradients = {name: p.grad for name, p in task.net.named_parameters()}
    assert all(torch.isfinite(g).all() for g in gradients.values())
    assert all(g.abs().sum() == 0 for name, g in gradients.items() if "m_video" in name or "m_items" in name)
    assert gradients["towers.m_click@post.0.weight"].abs().sum() > 0


def test_switches_change_what_they_say(schema, batch):
    full, no_hfa, no_pdl = mem(schema), mem(schema, hfa=False), mem(schema, gamma=0.0)
    names = {name for name, _ in full.named_parameters()}
    assert names - {name for name, _ in no_hfa.named_parameters()} == {
        name for name in names if ".hfa." in name and ".align." not in name
    }
    assert "pdl" in full(batch).loss
    assert "pdl" not in no_pdl(batch).loss
    assert "cosine/post" in no_pdl(batch).monitors  # still worth a curve


def test_every_parameter_of_mem_learns(schema, batch):
    task = mem(schema, levels=2, num_experts=2)
    task(batch).total_loss().backward()
    idle = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def tem(schema, pretrained=None, **settings):
    torch.manual_seed(1)
    mem_settings = PretrainSettings(**SMALL, **(pretrained or {}))
    return materialise(
        build_finetune(
            schema.only(("post",)),
            FinetuneSettings(widths=(6,), head_widths=(4,), **settings),
            EMBEDDINGS,
            1,
            SourceRun(schema, mem_settings, EMBEDDINGS),
        )
    )


@pytest.mark.parametrize("levels", [1, 2])
def test_the_pruned_teacher_says_what_mem_says_of_the_same_rows(schema, levels):
    whole, student = mem(schema, levels=levels), tem(schema, {"levels": levels})
    from_mem = whole.state_dict()
    renamed = {n: from_mem[n.removeprefix("teacher.")] for n in student.state_dict() if n.startswith("teacher.")}
    student.load_state_dict(renamed, strict=False)
    target = only(schema, 32, "post")
    taught = student.teacher(target)
    vectors, common = whole.net.common(whole.embeddings(as_mixed(target, schema)))
    torch.testing.assert_close(taught["common"], common["post"])
    for name, vector in vectors.items():
        torch.testing.assert_close(taught[name], vector)
    pruned = set(from_mem) - {name.removeprefix("teacher.") for name in renamed}
    for part in ("hfa.m_items", "hfa.m_video", "independent", "towers", "t_tags", "n_price", "last.experts.m_items"):
        assert any(part in name for name in pruned), part
    assert not any("hfa.m_post" in name for name in pruned)


def test_stage_two_leaves_the_teacher_without_gradients(schema):
    task, batch = tem(schema), only(schema, 32, "post")
    task.train()
    assert not task.teacher.training
    task(batch).total_loss().backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    idle = [
        n
        for n, p in task.named_parameters()
        if not n.startswith("teacher") and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert idle == []


def test_the_four_gates_add_what_mem_knows(schema):
    task, batch = tem(schema), only(schema, 32, "post")
    net, lookups = task.net, task.embeddings(batch)
    taught = task.teacher(batch)
    assert set(net.gates.names) == {"user", "sequence", "shared", "common"}
    own = net.vectors(lookups)
    gated = [own[n] + net.gates[n].value(taught[n]) * torch.sigmoid(net.gates[n].gate(taught[n])) for n in own]
    cross = net.cross(torch.cat([*gated, lookups.specific["post"].flatten(1)], dim=1))
    final = cross + net.gates["common"](taught["common"], cross)
    torch.testing.assert_close(task(batch).score["click@post"], net.heads["click@post"](final).squeeze(1).sigmoid())
    with torch.no_grad():
        for name in net.gates.names:
            net.gates[name].value.weight.zero_()
            net.gates[name].value.bias.zero_()
    alone = net.heads["click@post"](net.cross(torch.cat([*own.values(), lookups.specific["post"].flatten(1)], dim=1)))
    torch.testing.assert_close(task(batch).score["click@post"], alone.squeeze(1).sigmoid())


def test_dynamic_gates_see_tems_own_vectors(schema):
    static, dynamic = tem(schema), tem(schema, gates="dynamic")
    for name in static.net.gates.names:
        assert dynamic.net.gates[name].gate.in_features > static.net.gates[name].gate.in_features
    dynamic(only(schema, 8, "post")).total_loss().backward()


def test_stage_two_wants_one_domain_that_stage_one_knows(schema):
    arguments = (
        FinetuneSettings(),
        EMBEDDINGS,
        0,
        SourceRun(schema.only(("items", "post")), PretrainSettings(**SMALL), EMBEDDINGS),
    )
    with pytest.raises(UserError, match=r"one target.*items, video, post"):
        build_finetune(schema, *arguments)
    with pytest.raises(UserError, match="unknown domain 'video'"):
        build_finetune(schema.only(("video",)), *arguments)
    other = {**SCHEMA, "features": [{**f, "rows": 24} if f["column"] == "category" else f for f in SCHEMA["features"]]}
    with pytest.raises(UserError, match="'category'"):
        build_finetune(Schema.model_validate(other).only(("post",)), *arguments)
