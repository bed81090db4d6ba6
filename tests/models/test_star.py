import torch

from tests.support.domain_batches import as_mixed, only
from tests.support.small_models import joint_model
from torchrec_xd.modules.star import PartitionedNorm, StarLinear


def test_a_domains_weights_are_the_shared_ones_times_its_own():
    torch.manual_seed(0)
    layer, x = StarLinear(3, 2, ("a", "b")), torch.randn(4, 3)
    torch.testing.assert_close(layer(x, "a"), layer.shared(x))  # where all begin
    with torch.no_grad():
        for domain in ("a", "b"):
            layer.own[domain].weight.normal_()
            layer.own[domain].bias.normal_()
    for domain in ("a", "b"):
        own, shared = layer.own[domain], layer.shared
        expected = [
            [
                sum(shared.weight[o, i] * own.weight[o, i] * x[row, i] for i in range(3)) + shared.bias[o] + own.bias[o]
                for o in range(2)
            ]
            for row in range(4)
        ]
        torch.testing.assert_close(layer(x, domain), torch.stack([torch.stack(outputs) for outputs in expected]))


def test_own_weights_learn_from_their_domains_rows_alone_and_shared_ones_from_all(schema, batch):
    task = joint_model(schema, "star")
    losses = task(batch).loss
    first = task.net.layers[0]
    weights = [first.shared.weight, *(first.own[d].weight for d in schema.domains)]
    weights += [task.net.norm.own[d].scale for d in schema.domains]
    for i, domain in enumerate(schema.domains):
        gradients = torch.autograd.grad(
            losses[f"bce/click@{domain}"], weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        moved = [bool(gradient.abs().sum() > 0) for gradient in gradients]
        assert moved == [True, *2 * [d == i for d in range(3)]]


def test_the_logit_is_the_stars_and_the_auxiliary_networks(schema, batch):
    task = joint_model(schema, "star").eval()
    net, lookups = task.net, task.embeddings(batch)
    x = net.rows(lookups)
    for domain, own in lookups.rows.items():
        indicator = net.indicators[f"i_{domain}"].expand(own.stop - own.start, -1)
        aside = net.auxiliary(torch.cat([indicator, x[own]], dim=1))
        expected = (net.star(x[own], domain) + aside).squeeze(1).sigmoid()
        torch.testing.assert_close(task(batch).score[f"click@{domain}"], expected)


def test_a_domain_is_normalised_by_its_own_rows():
    torch.manual_seed(0)
    norm, rows = PartitionedNorm(2, ("a", "b"), momentum=0.25), torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([2.0, 3.0]))
        norm.shift.copy_(torch.tensor([0.5, 0.0]))
        norm.own["a"].scale.copy_(torch.tensor([1.0, 2.0]))
        norm.own["a"].shift.copy_(torch.tensor([0.0, 7.0]))
    expected = torch.tensor([[-2.0 + 0.5, -6.0 + 7.0], [2.0 + 0.5, 6.0 + 7.0]])
    torch.testing.assert_close(norm(rows, "a"), expected, rtol=1e-4, atol=1e-4)
    # The running ones begin at mean 0 and variance 1; the rows' unbiased variances are 2 and 200.
    torch.testing.assert_close(norm.own["a"].mean, torch.tensor([0.5, 5.0]))
    torch.testing.assert_close(norm.own["a"].variance, torch.tensor([1.25, 50.75]))
    torch.testing.assert_close(norm.own["b"].mean, torch.zeros(2))
    norm.eval()
    running = (rows - torch.tensor([0.5, 5.0])) / torch.tensor([1.25, 50.75]).sqrt()
    torch.testing.assert_close(
        norm(rows, "a"), running * torch.tensor([2.0, 6.0]) + torch.tensor([0.5, 7.0]), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(norm(rows[:1], "a"), norm(rows, "a")[:1])  # who else is there does not matter


def test_batches_with_fewer_than_two_rows_of_a_domain_move_no_statistics():
    norm = PartitionedNorm(2, ("a",))
    for count in (0, 1):
        out = norm(torch.full((count, 2), 5.0, requires_grad=True), "a")
        out.sum().backward()
        torch.testing.assert_close(out, torch.full((count, 2), 5.0), rtol=1e-4, atol=1e-4)
    assert torch.equal(norm.own["a"].mean, torch.zeros(2))
    assert torch.isfinite(norm.own["a"].scale.grad).all()


def test_absent_domains_keep_their_statistics(schema, batch):
    task = joint_model(schema, "star")
    task(batch)
    before = {d: task.net.norm.own[d].mean.clone() for d in schema.domains}
    task(as_mixed(only(schema, 32, "post"), schema))
    moved = [d for d in schema.domains if not torch.equal(task.net.norm.own[d].mean, before[d])]
    assert moved == ["post"]
