"""Layers, names and where dropout works."""

import torch

from torchrec_xd.modules.mlp import MLP


def test_weights_are_called_the_same_whatever_the_dropout():
    names = [list(MLP(3, (4, 2, 1), head=True, dropout=dropout).state_dict()) for dropout in (0.0, 0.5)]
    assert names[0] == names[1]  # a run that begins with another may drop out more or less than that one did


def test_dropout_follows_every_activation_but_a_heads_output():
    torch.manual_seed(0)
    net, x = MLP(2, (1000, 1), head=True, dropout=0.25), torch.ones(1, 2)
    active = torch.relu(net[0](x))
    dropped = net[1](active)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], active[kept] / 0.75)
    assert 0.2 < 1 - kept.sum() / (active != 0).sum() < 0.3
    torch.testing.assert_close(net.eval()(x), net[2](active))
