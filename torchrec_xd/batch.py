"""A batch: rows of several domains, grouped by domain, ready for one lookup per embedding collection.

Shape legend: B rows of the batch, F features, N dense features, V numbers of all vectors, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass(frozen=True)
class LoaderState:
    """How far a loader has read; with seed, rank and world size it determines everything that follows."""

    epoch: int
    """Completed epochs."""
    step: int
    """Completed batches of this epoch, this one included."""


READ_BY_MODELS = ("bags", "weighted_bags", "sequences", "dense_BN", "vector_BV", "label_BT", "weight_B")
"""Parts of a batch that go to a device."""


@dataclass
class Batch(Pipelineable):
    """Rows in domain order: rows of domain i are `offsets[i]:offsets[i + 1]`, so a model narrows and never masks.

    What models read (`bags` to `weight_B`) goes to a device; `user_B` and `extra_BK` stay on the CPU, where metrics and
    written predictions need them.
    """

    bags: KeyedJaggedTensor
    """Ids of the EmbeddingBagCollection, int64, keys in schema order, stride B; lengths are int32: half the bytes to a
    GPU and between ranks, for fewer than 2^31 ids in a batch."""
    weighted_bags: KeyedJaggedTensor
    """Ids of the EmbeddingBagCollection of weighted tables, alike, each with a weight in float32."""
    sequences: KeyedJaggedTensor
    """Ids of the EmbeddingCollection, alike."""
    dense_BN: Tensor
    """Dense features, float32, in schema order; 0 where the domain lacks the column, or the value is null
    and the schema has no `missing` for it."""
    vector_BV: Tensor
    """Vectors, float32, side by side in schema order, each `Feature.width` wide; 0 where the domain lacks the column or
    the value is null, but for a null's indicator."""
    label_BT: Tensor
    """Labels, float32, in task order; NaN where the task is another domain's, or nullable and the label null."""
    weight_B: Tensor
    """Row weights, float32; 1 unless the schema names a column."""
    user_B: Tensor
    """User ids, int64, for GAUC; always on the CPU."""
    extra_BK: Tensor
    """int64 columns that metrics slice by, in the order they were asked for; always on the CPU."""
    offsets: tuple[int, ...]
    """Cumulative rows by domain, len(domains) + 1 entries from 0 to B."""
    position: LoaderState
    """How far the loader had read with this batch."""
    labelled_T: Tensor | None = None
    """Rows that have each label, in the mean over the ranks' batches; None: this batch alone counts."""

    def __len__(self) -> int:
        return self.offsets[-1]

    def rows(self, domain_index: int) -> slice:
        """The rows of one domain."""
        return slice(self.offsets[domain_index], self.offsets[domain_index + 1])

    def padding(self) -> Batch:
        """A dummy row on the same device: of the first domain, without ids, of weight 0.

        For a rank that has no row where others have: TorchRec's sharded collections take no batch of 0 rows, and the
        others would wait for it forever.
        """
        return replace(
            self,
            bags=_one_row_without_ids(self.bags),
            weighted_bags=_one_row_without_ids(self.weighted_bags),
            sequences=_one_row_without_ids(self.sequences),
            dense_BN=self.dense_BN.new_zeros(1, self.dense_BN.shape[1]),
            vector_BV=self.vector_BV.new_zeros(1, self.vector_BV.shape[1]),
            label_BT=self.label_BT.new_zeros(1, self.label_BT.shape[1]),
            weight_B=self.weight_B.new_zeros(1),
            user_B=self.user_B.new_zeros(1),
            extra_BK=self.extra_BK.new_zeros(1, self.extra_BK.shape[1]),
            offsets=(0, *[1] * (len(self.offsets) - 1)),
        )

    def labelled(self) -> Tensor:
        """Rows of this batch that have each label, float32 `[T]`."""
        return (~self.label_BT.isnan()).sum(0, dtype=torch.float32)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch with what models read on another device."""
        return self._each(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch with what models read in page-locked memory, from where copies to a GPU do not block."""
        return self._each(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the CUDA allocator that `stream` still uses this memory."""
        for name in READ_BY_MODELS:
            getattr(self, name).record_stream(stream)

    def _each(self, call: Callable[[Any], Any]) -> Batch:
        return replace(self, **{name: call(getattr(self, name)) for name in READ_BY_MODELS})


def _one_row_without_ids(ids: KeyedJaggedTensor) -> KeyedJaggedTensor:
    keys, weights = ids.keys(), ids.weights_or_none()
    none = None if weights is None else weights[:0]
    return KeyedJaggedTensor(keys, ids.values()[:0], none, lengths=ids.lengths().new_zeros(len(keys)), stride=1)
