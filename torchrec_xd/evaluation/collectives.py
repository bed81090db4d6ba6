"""The collectives that metrics need, on numpy arrays.

Shape legend: R rows on this rank, W ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_xd.evaluation.row_quantities import Array


class Collectives:
    """The collectives that metrics need, on numpy arrays; a single rank communicates nothing."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.size = 1 if group is None else group.size()
        self.rank = 0 if group is None else group.rank()
        self._group = group
        self._device = torch.device("cpu")
        if group is not None and "cpu:" not in dist.get_backend_config(group):
            self._device = torch.device("cuda", torch.cuda.current_device())

    def gather(self, values: Array) -> Array:
        """The vectors `values` of all ranks, [W, length]; they are equally long."""
        if self.size == 1:
            return values[None]
        sent = self._tensor(values)
        received = sent.new_empty(self.size * len(sent))
        dist.all_gather_single(received, sent, group=self._group)
        return _array(received).reshape(self.size, -1)

    def total(self, values: Array) -> Array:
        """Sum over ranks, added up in rank order, so that all ranks get the same bits."""
        return np.asarray(self.gather(values).sum(axis=0))

    def union(self, values: Array) -> Array:
        """Distinct values of all ranks, ascending. For few values: every rank gets them all."""
        if self.size == 1:
            return np.unique(values)
        gathered: list[Array] = [values] * self.size
        dist.all_gather_object(gathered, values, group=self._group)
        return np.unique(np.concatenate(gathered))

    def exchange(self, columns: Sequence[Array], num_sent: Array) -> tuple[Array, ...]:
        """Send the first rows of all `columns` to rank 0, the next ones to rank 1, ...; rows received, by sending rank.

        Args:
            columns: of the same types on all ranks.
            num_sent: rows to each rank, [W].
        """
        if self.size == 1:
            return tuple(columns)
        num_received = self.gather(num_sent)[:, self.rank].tolist()
        received = []
        for column in columns:
            sent = self._tensor(column)
            arrived = sent.new_empty((sum(num_received), *sent.shape[1:]))
            dist.all_to_all_single(arrived, sent, num_received, num_sent.tolist(), group=self._group)
            received.append(_array(arrived))
        return tuple(received)

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


def _array(values: Tensor) -> Array:
    return np.asarray(values.cpu().numpy())
