import torch

from tests.support.small_models import joint_model


def test_all_domains_go_through_one_trunk_and_each_through_its_tower(schema, batch):
    task = joint_model(schema, "shared_bottom")
    net, lookups = task.net, task.embeddings(batch)
    vectors = torch.cat(list(net.rows.vectors(lookups).values()), dim=1)
    for domain, own in lookups.rows.items():
        specific = lookups.specific[domain].flatten(1)
        aligned = torch.relu(net.rows.align[domain].align(specific))
        hidden = net.trunk(torch.cat([vectors[own], aligned], dim=1))
        expected = net.towers.towers[f"click@{domain}"](hidden).squeeze(1).sigmoid()
        torch.testing.assert_close(task(batch).score[f"click@{domain}"], expected)


def test_the_trunk_learns_from_every_domain(schema, batch):
    task = joint_model(schema, "shared_bottom")
    losses = task(batch).loss
    weight = task.net.trunk[0].weight
    parts = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses.values()]
    assert all(part.abs().sum() > 0 for part in parts)
