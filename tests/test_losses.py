import math

import torch
from torch.nn import functional

from torchrec_xd.losses import bce_sum, cosine, polarized_distribution_loss, probability_bce_sum, squared_error_sum


def test_bce_by_hand_with_weights():
    logit, label = torch.tensor([0.0, math.log(3.0)]), torch.tensor([1.0, 0.0])
    expected = math.log(2) + 2 * math.log(4)  # -log 1/2, and twice -log(1 - 3/4)
    assert math.isclose(bce_sum(logit, label, torch.tensor([1.0, 2.0])).item(), expected, rel_tol=1e-6)
    assert bce_sum(torch.empty(0), torch.empty(0)).item() == 0.0


def test_cross_entropy_of_predictions_that_may_exceed_one():
    prob = torch.tensor([0.5, 0.25, 0.95, 2.0, 2.0, 0.0], requires_grad=True)
    label, weight = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    loss = probability_bce_sum(prob, label, weight)
    tangent = [math.log(10) + 10 * (value - 0.9) for value in (0.95, 2.0)]
    expected = math.log(2) + 2 * math.log(4 / 3) + tangent[0] + 3 * tangent[1] + 23 * math.log(2)
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)
    loss.backward()
    torch.testing.assert_close(prob.grad, torch.tensor([-2.0, 2 / 0.75, 10.0, 30.0, 0.0, 0.0]))


def test_squared_errors_by_hand():
    given = torch.tensor([0.5, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])
    assert squared_error_sum(*given).item() == 0.25 + 2 * 4


def pdl(*pairs):
    """The loss, of one pair per domain."""
    return sum(polarized_distribution_loss(dict(enumerate(pairs))).values())


def test_pdl_by_hand_means_over_rows_and_sums_over_domains():
    first = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, -3.0]]))  # cos 1/sqrt 2 and -1
    second = (torch.tensor([[5.0, 0.0]]), torch.tensor([[1.0, 0.0]]))  # cos 1
    expected = (math.sqrt(0.5) - 1) / 2 + 1
    assert math.isclose(pdl(first, second).item(), expected, rel_tol=1e-6)


def test_pdl_of_squares_and_absolute_values_by_hand():
    pair = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, -3.0]]))  # cos 1/sqrt 2 and -1
    assert math.isclose(polarized_distribution_loss({"a": pair}, "squared")["a"].item(), 0.75, rel_tol=1e-6)
    absolute = polarized_distribution_loss({"a": pair}, "absolute")["a"].item()
    assert math.isclose(absolute, (math.sqrt(0.5) + 1) / 2, rel_tol=1e-6)


def test_pdl_is_signed():
    one = torch.tensor([[1.0, 2.0]])
    assert math.isclose(pdl((one, -one)).item(), -1.0, rel_tol=1e-6)


def test_pdl_of_an_absent_domain_and_of_zero_vectors_is_zero_with_finite_gradients():
    zero = torch.zeros(2, 3, requires_grad=True)
    other = torch.randn(2, 3, requires_grad=True)
    empty = torch.empty(0, 3, requires_grad=True)
    loss = pdl((zero, other), (empty, empty))
    assert loss.item() == 0.0
    loss.backward()
    assert torch.isfinite(zero.grad).all()
    assert torch.isfinite(other.grad).all()


def test_minimising_pdl_turns_the_vectors_apart():
    torch.manual_seed(0)
    common, independent = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    before = pdl((common, independent))
    before.backward()
    with torch.no_grad():
        after = pdl((common - common.grad, independent - independent.grad))
    assert after < before


def test_cosine_is_torchs_own_in_value_and_gradients():
    torch.manual_seed(0)
    scale = torch.tensor([[1.0], [1e-6], [1e6], [0.0]])  # the last row is a zero vector
    pairs = [[(scale * torch.randn(4, 5)).requires_grad_(), torch.randn(4, 5).requires_grad_()]]
    pairs.append([part.detach().clone().requires_grad_() for part in pairs[0]])
    weigh = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for found, (a, b) in zip((cosine(*pairs[0]), functional.cosine_similarity(*pairs[1], dim=1)), pairs, strict=True):
        torch.testing.assert_close(found, functional.cosine_similarity(a, b, dim=1))
        (weigh * found).sum().backward()
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
