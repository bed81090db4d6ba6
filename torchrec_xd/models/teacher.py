"""A frozen model whose outputs another model reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrec_xd.batch import Batch
from torchrec_xd.embeddings import Embeddings


class Teacher(nn.Module):
    """A frozen model that hands knowledge over: never a gradient, never a step, dropout off."""

    def __init__(self, embeddings: Embeddings, net: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.net = net
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Name to vector per row."""
        knowledge: dict[str, Tensor] = self.net(self.embeddings(batch))
        return knowledge
