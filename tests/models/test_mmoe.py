import pytest
import torch

from tests.support.small_models import joint_model, settings_of
from torchrec_xd.models import MODELS
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate


def test_a_task_mixes_all_experts_by_its_own_gate(schema, batch):
    task = joint_model(schema, "mmoe", num_experts=3)
    net, lookups = task.net, task.embeddings(batch)
    x = net.rows(lookups)
    for domain, own in lookups.rows.items():
        scores = torch.exp(x[own] @ net.gates[f"click@{domain}"].linear.weight.T)
        gate = scores / scores.sum(1, keepdim=True)
        torch.testing.assert_close(gate.sum(1), torch.ones(len(gate)))
        mixture = sum(gate[:, [e]] * net.experts[e](x[own]) for e in range(3))
        expected = net.towers[f"click@{domain}"](mixture).squeeze(1).sigmoid()
        torch.testing.assert_close(task(batch).score[f"click@{domain}"], expected)


def test_a_gate_learns_from_its_task_and_an_expert_from_all(schema, batch):
    task = joint_model(schema, "mmoe", num_experts=3)
    loss = task(batch).loss["bce/click@items"]
    loss.backward()
    gates = {name: task.net.gates[name].linear.weight.grad for name in task.net.gates.names}
    assert {name for name, gradient in gates.items() if gradient is not None} == {"click@items"}
    assert all(expert[0].weight.grad.abs().sum() > 0 for expert in task.net.experts)


def test_two_tasks_of_one_domain_have_a_gate_each(schema):
    content = schema.model_dump(by_alias=True)
    content["tasks"] = [{"label": "click", "domain": "post"}, {"label": "like", "domain": "post"}]
    content["domains"] = {"post": content["domains"]["post"]}
    content["features"] = [f for f in content["features"] if f["domains"] in (None, ("post",))]
    net = joint_model(validate(Schema, content, "test"), "mmoe").net
    assert net.gates.names == ("click@post", "like@post")
    assert not torch.equal(net.gates["click@post"].linear.weight, net.gates["like@post"].linear.weight)


def test_a_mixture_of_no_experts_is_refused(schema):
    with pytest.raises(ValueError, match="num_experts"):
        settings_of("mmoe", num_experts=0)
    with pytest.raises(ValueError, match="expert_widths"):
        settings_of("mmoe", expert_widths=[])
    assert MODELS["mmoe"].transfer is None
