import torch

from tests.support.small_models import joint_model
from torchrec_xd.modules.ple import SHARED


def test_a_domain_learns_its_own_and_the_shared_experts_and_leaves_the_others(schema, batch):
    task = joint_model(schema, "ple", levels=1)
    last = task.net.ple.last.experts
    loss = task(batch).loss["bce/click@post"]

    def moved(path):
        (gradient,) = torch.autograd.grad(loss, last[path][0][0].weight, retain_graph=True, allow_unused=True)
        return gradient is not None and bool(gradient.abs().sum() > 0)

    assert {path for path in last.names if moved(path)} == {"post", SHARED}


def test_the_towers_read_the_last_mixture(schema, batch):
    task = joint_model(schema, "ple", levels=2)
    net, lookups = task.net, task.embeddings(batch)
    mixtures = net.ple(net.rows(lookups), lookups.rows)
    for domain, mixture in mixtures.items():
        expected = net.towers.towers[f"click@{domain}"](mixture).squeeze(1).sigmoid()
        torch.testing.assert_close(task(batch).score[f"click@{domain}"], expected)
