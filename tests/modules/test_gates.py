import math

import torch

from torchrec_xd.modules.gates import ExpertGate, GatedLinearUnit


def test_expert_gate_by_hand():
    gate = ExpertGate(in_dim=1, num_experts=2)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[math.log(3.0)], [0.0]]))
    mixed = gate(torch.tensor([[1.0]]), [torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 8.0]])])
    torch.testing.assert_close(mixed, torch.tensor([[3.0, 2.0]]))  # weights 3/4 and 1/4


def unit(dynamic):
    glu = GatedLinearUnit(in_dim=1, out_dim=1, state_dim=1 if dynamic else 0)
    with torch.no_grad():
        glu.value.weight.fill_(2.0)
        glu.value.bias.fill_(1.0)
        glu.gate.weight.copy_(torch.tensor([[0.0, math.log(3.0)]]) if dynamic else torch.tensor([[math.log(3.0)]]))
        glu.gate.bias.zero_()
    return glu


def test_glu_by_hand():
    # value 2 * 1 + 1 = 3, gate sigmoid(log 3) = 3/4
    torch.testing.assert_close(
        unit(dynamic=False)(torch.tensor([[1.0]]), torch.tensor([[9.0]])), torch.tensor([[2.25]])
    )


def test_a_bias_opens_a_gate_at_the_start_and_draws_nothing_anew():
    gates = []
    for bias in (0.0, 3.0):
        torch.manual_seed(0)
        gates.append(GatedLinearUnit(in_dim=2, out_dim=3, bias=bias))
    plain, open_one = (gate.state_dict() for gate in gates)
    torch.testing.assert_close(open_one.pop("gate.bias"), plain.pop("gate.bias") + 3.0)
    assert all(torch.equal(open_one[name], plain[name]) for name in plain)
    assert (gates[1].openness(torch.zeros(1, 2), torch.zeros(1, 3)) > 0.9).all()


def test_a_dynamic_gate_looks_at_the_receiver_and_a_static_one_does_not():
    x, low, high = torch.tensor([[1.0]]), torch.tensor([[-1.0]]), torch.tensor([[1.0]])
    static, dynamic = unit(dynamic=False), unit(dynamic=True)
    assert torch.equal(static(x, low), static(x, high))
    torch.testing.assert_close(dynamic(x, low), torch.tensor([[0.75]]))  # 3 * sigmoid(-log 3)
    torch.testing.assert_close(dynamic(x, high), torch.tensor([[2.25]]))
