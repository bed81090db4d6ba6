import pytest
import torch

from tests.models.small import joint_model, settings_of
from torchrec_xd.models import MODELS


def test_a_domain_mixes_all_experts_by_its_own_gate(schema, batch):
    task = joint_model(schema, "mmoe", num_experts=3)
    net, lookups = task.net, task.embeddings(batch)
    x = net.rows(lookups)
    for domain, own in lookups.rows.items():
        scores = torch.exp(x[own] @ net.gates[domain].linear.weight.T)
        gate = scores / scores.sum(1, keepdim=True)
        torch.testing.assert_close(gate.sum(1), torch.ones(len(gate)))
        mixture = sum(gate[:, [e]] * net.experts[e](x[own]) for e in range(3))
        expected = net.towers.towers[f"click@{domain}"](mixture).squeeze(1).sigmoid()
        torch.testing.assert_close(task(batch)[1].score[f"click@{domain}"], expected)


def test_a_gate_learns_from_its_domain_and_an_expert_from_all(schema, batch):
    task = joint_model(schema, "mmoe", num_experts=3)
    loss = task(batch)[1].loss["bce/click@items"]
    loss.backward()
    gates = {domain: task.net.gates[domain].linear.weight.grad for domain in schema.domains}
    assert {domain for domain, gradient in gates.items() if gradient is not None} == {"items"}
    assert all(expert[0].weight.grad.abs().sum() > 0 for expert in task.net.experts)


def test_a_mixture_of_no_experts_is_refused(schema):
    with pytest.raises(ValueError, match="num_experts"):
        settings_of("mmoe", num_experts=0)
    with pytest.raises(ValueError, match="expert_widths"):
        settings_of("mmoe", expert_widths=[])
    assert MODELS["mmoe"].transfer is None
