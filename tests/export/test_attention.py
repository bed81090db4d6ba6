"""Attention as it is exported: the same as in training."""

import pytest
import torch

from torchrec_xd.export.attention import FlatAttention
from torchrec_xd.modules.attention import TargetAttention

ROWS, DIM = 6, 8


@pytest.mark.parametrize("length", [1, 3, 30])
def test_flat_attention_is_target_attention(length):
    torch.manual_seed(length)
    attention = TargetAttention(DIM, hidden=5)
    lengths = torch.tensor([0, 1, 2, length, length - 1, 0]).clamp(max=length)
    query, keys = torch.randn(ROWS, DIM), torch.randn(ROWS, length, DIM)
    keys[torch.arange(length) >= lengths.unsqueeze(1)] = 0  # as the tables' lookups pad
    found = FlatAttention(attention, length)(query, keys, lengths)
    torch.testing.assert_close(found, attention(query, keys, lengths), rtol=0, atol=1e-6)
    assert not found[0].any()
    assert found[3].any()


def test_where_a_domain_has_no_such_sequence_it_is_zero():
    flat = FlatAttention(TargetAttention(DIM), 4)
    assert torch.equal(
        flat(torch.randn(ROWS, DIM), torch.zeros(ROWS, 0, DIM), torch.zeros(ROWS)), torch.zeros(ROWS, DIM)
    )
