import math

import pytest
import torch

from torchrec_xd.modules.hfa import HeterogeneousFeatureAlignment


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_hand():
    """Two features of width 1, all weights chosen so that the equations can be followed on paper."""
    hfa = HeterogeneousFeatureAlignment(num_features=2, dim=1, aligned_dim=2)
    with torch.no_grad():
        hfa.cross_weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        hfa.cross_bias.copy_(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
        hfa.implicit.weight.copy_(torch.eye(2))
        hfa.implicit.bias.zero_()
        hfa.importance.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]))
        hfa.importance.bias.zero_()
        hfa.align.weight.copy_(torch.eye(2))
        hfa.align.bias.copy_(torch.tensor([0.0, 3.0]))
    return hfa


def test_scores_and_output_by_hand():
    # x0 = (2, -1); x1 = x0 * (x0.w1 = 2) + 0.5 + x0 = (6.5, -2.5); x2 = x1 * (x0.w2 = -1) + x0 = (-4.5, 1.5)
    # implicit = relu(x0) = (2, 0); scores = 2 sigmoid of x2[0] and implicit[0]
    spec = torch.tensor([[[2.0], [-1.0]]])
    p = [2 * sigmoid(-4.5), 2 * sigmoid(2.0)]
    hfa = by_hand()
    torch.testing.assert_close(hfa.importances(spec), torch.tensor([p]))
    torch.testing.assert_close(hfa(spec), torch.tensor([[p[0] * 2.0, 3.0 - p[1]]]))


def test_the_printed_cross_is_not_dcns():
    # DCN would give x1 = x0 * (x0.w1) + b + x0 (the same), but x2 = x0 * (x1.w2 = -2.5) + x1 = (1.5, 0)
    score = by_hand().importances(torch.tensor([[[2.0], [-1.0]]]))[0, 0].item()
    assert score == pytest.approx(2 * sigmoid(-4.5))
    assert score != pytest.approx(2 * sigmoid(1.5))


def test_scores_lie_between_0_and_2_and_reach_the_features():
    torch.manual_seed(0)
    hfa = HeterogeneousFeatureAlignment(num_features=5, dim=3, aligned_dim=4)
    spec = torch.randn(64, 5, 3) / 2
    scores = hfa.importances(spec)
    assert scores.shape == (64, 5)
    assert ((scores > 0) & (scores < 2)).all()
    hfa(spec).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in hfa.parameters())


def test_domains_of_unequal_schemas_meet_at_one_width():
    few, many = HeterogeneousFeatureAlignment(1, 8, 16), HeterogeneousFeatureAlignment(7, 8, 16)
    assert few(torch.randn(3, 1, 8)).shape == many(torch.randn(3, 7, 8)).shape == (3, 16)


def test_without_scores_only_the_last_layer_is_left():
    hfa = HeterogeneousFeatureAlignment(2, 1, 2, scores=False)
    assert {name for name, _ in hfa.named_parameters()} == {"align.weight", "align.bias"}
    with torch.no_grad():
        hfa.align.weight.copy_(torch.eye(2))
        hfa.align.bias.zero_()
    torch.testing.assert_close(hfa(torch.tensor([[[2.0], [-1.0]]])), torch.tensor([[2.0, 0.0]]))


def test_no_rows():
    assert by_hand()(torch.empty(0, 2, 1)).shape == (0, 2)
