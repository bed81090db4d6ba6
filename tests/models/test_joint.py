"""What every joint baseline has to keep, whatever its mechanism."""

import pytest
import torch

from tests.support.domain_batches import as_mixed, only
from tests.support.small_models import JOINT, idle, joint_model
from torchrec_xd.errors import UserError

every_model = pytest.mark.parametrize("name", JOINT)


@every_model
def test_the_loss_is_each_tasks_bce_over_all_rows(schema, batch, name):
    output = joint_model(schema, name)(batch)
    loss = output.total_loss()
    expected = 0.0
    for i, domain in enumerate(schema.domains):
        own = batch.rows(i)
        label, prob = batch.label_BT[own, i], output.score[f"click@{domain}"]
        expected += torch.where(label == 1, -prob.log(), -(1 - prob).log()).sum() / len(batch)
    torch.testing.assert_close(loss, expected)


@every_model
def test_domain_weight_scales_that_domains_part_alone(schema, batch, name):
    plain, weighted = (joint_model(schema, name, domain_weight=w)(batch).loss for w in ({}, {"post": 3.0}))
    torch.testing.assert_close(weighted["bce/click@post"], 3 * plain["bce/click@post"])
    torch.testing.assert_close(weighted["bce/click@items"], plain["bce/click@items"])
    with pytest.raises(UserError, match=r"unknown domain 'posts'.*items, video, post"):
        joint_model(schema, name, domain_weight={"posts": 3.0})


@every_model
def test_every_parameter_learns(schema, batch, name):
    task = joint_model(schema, name)
    task(batch).total_loss().backward()
    assert idle(task) == []


@every_model
def test_a_batch_without_some_domains_trains_the_others(schema, name):
    task = joint_model(schema, name)
    output = task(as_mixed(only(schema, 32, "post"), schema))
    loss = output.total_loss()
    assert output.loss["bce/click@items"].item() == 0.0
    loss.backward()
    gradients = {n: p.grad for n, p in task.net.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    absent = [g for n, g in gradients.items() if any(part in n for part in (".m_click@items", "align.m_items"))]
    assert absent
    assert all(g.abs().sum() == 0 for g in absent)
    assert gradients["rows.align.m_post.align.weight"].abs().sum() > 0


@every_model
def test_evaluation_is_deterministic_and_leaves_no_trace(schema, batch, name):
    task = joint_model(schema, name)
    task(batch)
    before = {n: value.clone() for n, value in task.state_dict().items()}
    task.eval()
    said = task(batch).score["click@post"]
    task(as_mixed(only(schema, 16, "post"), schema))
    torch.testing.assert_close(task(batch).score["click@post"], said, rtol=0, atol=0)
    assert all(torch.equal(value, before[n]) for n, value in task.state_dict().items())


@every_model
def test_one_domain_is_enough(schema, name):
    single = joint_model(schema.only(("post",)), name)
    single(only(schema, 32, "post")).total_loss().backward()
    assert idle(single) == []
