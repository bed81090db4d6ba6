import torch

from tests.support.small_models import joint_model
from torchrec_xd.modules.cross_connection import CrossConnection


def test_a_tower_hears_every_other_through_a_matrix_of_that_pair():
    torch.manual_seed(0)
    layer = CrossConnection(3, 2, ("a", "b", "c"))
    states = {domain: torch.randn(4, 3) for domain in "abc"}
    for domain in "abc":
        own, heard = layer.own[domain], layer.transfer[domain]
        assert set(heard.names) == set("abc") - {domain}
        for row in range(4):
            expected = [
                max(
                    own.bias[o].item()
                    + sum(own.weight[o, i].item() * states[domain][row, i].item() for i in range(3))
                    + sum(
                        heard[source].weight[o, i].item() * states[source][row, i].item()
                        for source in heard.names
                        for i in range(3)
                    ),
                    0.0,
                )
                for o in range(2)
            ]
            torch.testing.assert_close(layer(states, domain)[row], torch.tensor(expected))


def silence(net):
    with torch.no_grad():
        for layer in net.layers:
            for parameter in layer.transfer.parameters():
                parameter.zero_()


def test_without_transfer_the_towers_are_separate(schema, batch):
    task = joint_model(schema, "conet")
    net, lookups = task.net, task.embeddings(batch)
    connected = {name: score.detach() for name, score in task(batch).score.items()}
    silence(net)
    output = task(batch)
    x = net.rows(lookups)
    for domain, own in lookups.rows.items():
        hidden = x[own]
        for layer in net.layers:
            hidden = torch.relu(layer.own[domain](hidden))
        expected = net.towers.towers[f"click@{domain}"](hidden).squeeze(1).sigmoid()
        torch.testing.assert_close(output.score[f"click@{domain}"], expected)
        assert not torch.allclose(connected[f"click@{domain}"], expected)


def test_a_domain_teaches_the_towers_that_it_hears(schema, batch):
    task = joint_model(schema, "conet")
    first = task.net.layers[0].own

    def taught_by_post():
        loss = task(batch).loss["bce/click@post"]
        weights = [first[domain].weight for domain in schema.domains]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return [d for d, gradient in zip(schema.domains, gradients, strict=True) if gradient.abs().sum() > 0]

    assert taught_by_post() == ["items", "video", "post"]
    silence(task.net)
    assert taught_by_post() == ["post"]


def test_one_crossed_layer_is_enough(schema, batch):
    assert torch.isfinite(joint_model(schema, "conet", widths=[5])(batch).total_loss())
