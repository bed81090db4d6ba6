"""What the dense part of a step does: counted once on the meta device, where tensors have shapes and no numbers.

Dense is all that is no table: the net, the layout of what was looked up, the loss, their backward passes, the dense
optimizer. The tables give vectors of the right shape; the plan prices their lookups.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from torchrec_xd.batch import Batch, LoaderState
from torchrec_xd.data.collate import Collator
from torchrec_xd.data.phases import PhaseSettings
from torchrec_xd.embeddings import table_collections
from torchrec_xd.private_names import TorchDispatchMode, operator_name, storage_key
from torchrec_xd.schema import Schema

META = torch.device("meta")
ALLOCATIONS = ("aten::empty", "aten::new_empty")
"""Beginnings of names of operators that only reserve memory."""
ADAMW_PASSES = 7
"""AdamW reads weight, gradient and two moments, and writes weight and moments."""


@dataclass(frozen=True)
class Operator:
    """One call of an operator that has to be launched; views are not."""

    name: str
    flops: float
    """Of matrix products and attention, 2 per multiplication and addition; 0 of all others."""
    bytes: int
    """Of all tensors that it reads and writes."""


@dataclass(frozen=True)
class DenseWork:
    """The dense part of one step of one rank."""

    forward: tuple[Operator, ...]
    backward: tuple[Operator, ...]
    optimizer: Operator
    """Fused: one launch."""
    gradient_bytes: int
    """Gradients of the dense weights, which all ranks add up."""
    batch_bytes: int
    """What is copied to the device: all that models read."""
    id_bytes: int
    """Ids, their lengths and weights, which go to the ranks that hold the tables."""

    @property
    def operators(self) -> tuple[Operator, ...]:
        """All of them, in order."""
        return (*self.forward, *self.backward, self.optimizer)

    @property
    def flops(self) -> float:
        """Of the whole step."""
        return sum(operator.flops for operator in self.operators)

    @property
    def bytes(self) -> int:
        """Read and written in the whole step, as if no operator found anything in a cache."""
        return sum(operator.bytes for operator in self.operators)


def meta_batch(
    schema: Schema, rows: int, pooling: Mapping[str, float], mixing: Mapping[str, float] | None = None
) -> Batch:
    """A batch as the loader makes them, on the meta device.

    Args:
        schema: of the run.
        rows: in the batch.
        pooling: feature to mean ids per row; 1 where not named.
        mixing: domain to its relative share of the rows. Default: equal shares.
    """
    empty = Collator(schema, 0)([[]] * len(schema.domains), LoaderState(0, 0)).to(META)
    shares = np.cumsum([(mixing or {}).get(name, 1.0) for name in schema.domains])

    def ids(none: KeyedJaggedTensor) -> KeyedJaggedTensor:
        keys = none.keys()
        counts = [round(pooling.get(key, 1.0) * rows) for key in keys]
        return KeyedJaggedTensor(
            keys,
            none.values().new_empty(sum(counts)),
            None if none.weights_or_none() is None else none.weights().new_empty(sum(counts)),
            lengths=none.lengths().new_empty(len(counts) * rows),
            stride=rows,
            length_per_key=counts,
        )

    def of_rows(none: Tensor) -> Tensor:
        return none.new_empty(rows, *none.shape[1:])

    return replace(
        empty,
        bags=ids(empty.bags),
        weighted_bags=ids(empty.weighted_bags),
        sequences=ids(empty.sequences),
        dense_BN=of_rows(empty.dense_BN),
        vector_BV=of_rows(empty.vector_BV),
        label_BT=of_rows(empty.label_BT),
        weight_B=of_rows(empty.weight_B),
        user_B=of_rows(empty.user_B),
        extra_BK=of_rows(empty.extra_BK),
        offsets=(0, *(round(rows * share / shares[-1]) for share in shares.tolist())),
    )


def longest_phase(
    schema: Schema, mixing: Mapping[str, float] | None, curriculum: Sequence[PhaseSettings], epochs: int
) -> tuple[Mapping[str, float] | None, str]:
    """Shares for `meta_batch` in the longest phase of training, the last of equals, and what that is in words.

    Args:
        schema: of the run.
        mixing: of the loader.
        curriculum: of the loader.
        epochs: of the whole training.
    """
    after = epochs - sum(phase.epochs for phase in curriculum)
    longest = max(reversed(curriculum), key=lambda phase: phase.epochs, default=None)
    if longest is None:
        return mixing, ""
    if after >= longest.epochs:
        return (
            None,
            f"The step is one of the {after} of {epochs} epochs after loader.curriculum; its phases take others.",
        )
    sources = {name: float(domain.role == "source") for name, domain in schema.domains.items()}
    given = sources if longest.shares == "sources" else {name: longest.shares.get(name, 0.0) for name in sources}
    named = ", ".join(name for name, share in given.items() if share)
    return given, (
        f"The step is one of the longest phase of loader.curriculum, {longest.epochs} of {epochs} epochs, of {named}; "
        "other epochs take others."
    )


def count_dense(model: nn.Module, batch: Batch) -> DenseWork:
    """Count a training step of `model`, which stays as it is.

    Args:
        model: takes a batch and gives an `Output`; weights on any device.
        batch: on the meta device, as `meta_batch` makes it.
    """
    dense = _without_tables(copy.deepcopy(model)).to(META).train()
    counter = FlopCounterMode(display=False)
    with counter, _Recorder(counter) as recorder:
        loss = dense(batch).total_loss()
        forward = recorder.take()
        loss.backward()
        backward = recorder.take()
    weight_bytes = _bytes([weight for weight in dense.parameters() if weight.requires_grad])
    ids = [
        part
        for each in (batch.bags, batch.weighted_bags, batch.sequences)
        for part in (each.values(), each.lengths(), each.weights_or_none())
        if part is not None
    ]
    # user ids and columns to slice by stay on the CPU
    rest = [batch.dense_BN, batch.vector_BV, batch.label_BT, batch.weight_B]
    return DenseWork(
        forward=forward,
        backward=backward,
        optimizer=Operator("AdamW", 0.0, ADAMW_PASSES * weight_bytes),
        gradient_bytes=weight_bytes,
        batch_bytes=_bytes([*ids, *rest]),
        id_bytes=_bytes(ids),
    )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that has to be launched."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = counter
        self.operators: list[Operator] = []

    def take(self) -> tuple[Operator, ...]:
        """What was noted since the last time."""
        taken, self.operators = tuple(self.operators), []
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, before = operator_name(func), self.counter.get_total_flops()
        given = _tensors([*args, *(kwargs or {}).values()])
        storages = {storage_key(tensor) for tensor in given}
        result = func(*args, **(kwargs or {}))
        made = _tensors([result])
        writes = name.endswith("_") or any(storage_key(tensor) not in storages for tensor in made)
        if writes and not name.startswith(ALLOCATIONS):
            flops = float(self.counter.get_total_flops() - before)
            self.operators.append(Operator(name, flops, _bytes([*given, *made])))
        return result


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        found += _tensors(value) if isinstance(value, list | tuple) else [value] if isinstance(value, Tensor) else []
    return found


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Expanded tensors count what lies in memory."""
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def _without_tables(model: nn.Module) -> nn.Module:
    """Tables replaced by what gives vectors of their shapes."""
    collections = {id(collection) for collection in table_collections(model)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in collections:
                setattr(parent, name, _Bags(child) if isinstance(child, EmbeddingBagCollection) else _Sequences(child))
    return model


class _Bags(nn.Module):
    """Vectors as an EmbeddingBagCollection gives them; they want a gradient where it is trained."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        pairs = [(name, c.embedding_dim) for c in tables.embedding_bag_configs() for name in c.feature_names]
        self.keys, self.widths = [name for name, _ in pairs], [width for _, width in pairs]
        self.trained = _trained(tables)

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        values = torch.empty(ids.stride(), sum(self.widths), device=META, requires_grad=self.trained)
        return KeyedTensor(self.keys, self.widths, values)


class _Sequences(nn.Module):
    """The same for an EmbeddingCollection."""

    def __init__(self, tables: EmbeddingCollection) -> None:
        super().__init__()
        self.widths = {name: c.embedding_dim for c in tables.embedding_configs() for name in c.feature_names}
        self.trained = _trained(tables)

    def forward(self, ids: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        given = ids.to_dict()
        return {
            name: _Gathered(
                torch.empty(len(given[name].values()), width, device=META, requires_grad=self.trained),
                lengths=given[name].lengths(),
            )
            for name, width in self.widths.items()
        }


class _Gathered(JaggedTensor):
    """Padding as a gather: FBGEMM's own operator has no backward pass on the meta device."""

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        assert desired_length is not None
        values, rows = self.values(), len(self.lengths())
        places = torch.empty(rows * desired_length, dtype=torch.int64, device=META)
        padded: Tensor = values.index_select(0, places).view(rows, desired_length, -1)
        return padded


def _trained(tables: nn.Module) -> bool:
    return any(weight.requires_grad for weight in tables.parameters())
