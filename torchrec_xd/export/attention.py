"""Target attention as ONNX Runtime computes it fast.

Of `[B, L, H]` with few positions and a narrow H, ONNX Runtime's broadcasts and its products of one small matrix a row
cost ten times what they compute. Here every row is flat, `[B, L * H]`, so that each step is either a wide matrix
product with a constant or element by element. Sums over positions are products with matrices of zeros and ones.

Shape legend: B rows, L positions, D embedding width, H hidden width, F all of a row's numbers, P positions of all rows.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec_xd.modules.attention import SequencePooling, TargetAttention
from torchrec_xd.modules.mapping import ModuleMap
from torchrec_xd.schema import Schema


class FlatAttention(nn.Module):
    """The same as `attention` on sequences of `length` positions that are zero where there is no id."""

    def __init__(self, attention: TargetAttention, length: int) -> None:
        super().__init__()
        of_q, of_k, of_difference, of_product = attention.hidden.weight.detach().chunk(4, dim=1)
        dim, self.length = of_q.shape[1], length
        self.of_position, self.bias = of_k - of_difference, attention.hidden.bias.detach()
        self.of_row, self.of_product = (of_q + of_difference).repeat(length, 1).T, of_product.T
        positions = torch.eye(length)
        self.score = torch.kron(positions, attention.score.weight.detach()).T
        self.spread = torch.kron(positions, torch.ones(dim, 1))
        self.repeated = torch.eye(dim).repeat(length, 1)

    def forward(self, query_BD: Tensor, keys_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Called like TargetAttention."""
        if not keys_BLD.shape[1]:  # rows of this domain have no such sequence
            return torch.zeros_like(query_BD)
        rows, (dim, hidden) = query_BD.shape[0], self.of_product.shape
        keys_BF = keys_BLD.reshape(-1, self.length * dim)
        product_BF = functional.linear(query_BD, self.repeated) * keys_BF
        # Sums are the third operand of a product, which costs no pass of its own.
        position_BLH = functional.linear(keys_BLD, self.of_position, self.bias)
        sum_BF = torch.addmm(position_BLH.reshape(-1, self.length * hidden), query_BD, self.of_row)
        sum_PH = torch.addmm(sum_BF.reshape(-1, hidden), product_BF.reshape(-1, dim), self.of_product)
        beyond_BL = -1e9 * (torch.arange(self.length) >= length_B.unsqueeze(1)).float()
        logit_BL = torch.addmm(beyond_BL, torch.relu(sum_PH).reshape(rows, -1), self.score)
        # Of an empty sequence all keys are zero, and so is this.
        spread_BF = functional.linear(torch.softmax(logit_BL, dim=1), self.spread)
        return functional.linear(spread_BF * keys_BF, self.repeated.T)


def with_flat_attention(net: nn.Module, schema: Schema) -> nn.Module:
    """A copy of a net that attends by `FlatAttention`."""
    net = copy.deepcopy(net)
    for pooling in [module for module in net.modules() if isinstance(module, SequencePooling)]:
        flat: dict[str, nn.Module] = {}
        for name in pooling.poolings.names:
            attention, length = pooling.poolings[name], schema.sequences()[name][0].length
            assert length is not None
            flat[name] = FlatAttention(attention, length) if isinstance(attention, TargetAttention) else attention
        pooling.poolings = ModuleMap(flat)
    return net
