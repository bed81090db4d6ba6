"""Reading checkpoints: tensors alone, and an index that can name nothing but its own classes.

No pickle of unknown content is ever loaded: tensors are read with `weights_only`, the index through an unpickler that
knows only torch's own index classes.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

from torchrec_xd.errors import UserError
from torchrec_xd.private_names import INDEX_CLASSES, checkpoint_index

DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}


def load(state: dict[str, Any], folder: Path, *, alone: bool = False, grown: bool = False) -> None:
    """Fill `state` from a checkpoint: all ranks together, or this one alone.

    Args:
        state: names to tensors, nested.
        folder: the checkpoint.
        alone: no other rank takes part.
        grown: tensors may have more rows than the checkpoint; rows that it lacks stay as they are.
    """
    reader = Reader(folder)
    try:
        with warnings.catch_warnings():
            # Torchrec's tables are ShardedTensors, which torch will replace some day: nothing that a user can act on.
            warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
            load_distributed(state, storage_reader=reader, planner=_TensorsOnly(grown), no_dist=alone)
    except CheckpointException as error:
        raise UserError(f"{folder} cannot be loaded: {causes(error)}") from error


def causes(error: CheckpointException) -> str:
    """What went wrong on the ranks, without torch's tracebacks."""
    return "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))


def shape(entry: Any) -> tuple[int, ...] | None:
    """Of a tensor, a sharded tensor or a checkpoint's entry; None where there is none."""
    if hasattr(entry, "local_shards"):
        entry = entry.metadata()
    elif isinstance(entry, torch.Tensor):
        return tuple(entry.shape)
    return tuple(entry.size) if hasattr(entry, "size") else None


class _TensorsOnly(DefaultLoadPlanner):
    """Refuses anything but tensors: the rest would be unpickled."""

    def __init__(self, grown: bool) -> None:
        super().__init__()
        self.grown = grown

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Tensors with more rows than the checkpoint's pass for equally large ones: the parts that it has are read."""
        super().set_up_planner(state_dict, metadata, is_coordinator)
        if self.grown and metadata is not None:
            sizes = _sizes(state_dict)
            entries = {name: _as_large(entry, sizes.get(name)) for name, entry in metadata.state_dict_metadata.items()}
            self.metadata = replace(metadata, state_dict_metadata=entries)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise UserError(f"checkpoint entry '{read_item.dest_index.fqn}' is a pickle; only tensors are loaded")


def _sizes(state: Any, begin: str = "") -> dict[str, tuple[int, ...]]:
    """Every tensor's size, by its name in the index."""
    found: dict[str, tuple[int, ...]] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= _sizes(value, f"{begin}{key}.")
        elif (size := shape(value)) is not None:
            found[f"{begin}{key}"] = size
    return found


def _as_large(entry: Any, wanted: tuple[int, ...] | None) -> Any:
    """An entry of the index, with the rows of a tensor that differs from it in having more of them."""
    if not isinstance(entry, TensorStorageMetadata) or not wanted or wanted[1:] != entry.size[1:]:
        return entry
    return replace(entry, size=torch.Size(wanted)) if wanted[0] > entry.size[0] else entry


class Reader(FileSystemReader):
    """Reads torch's index with an unpickler that knows the index's own classes and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; raises UserError where it is none, or names files elsewhere."""
        path = checkpoint_index(Path(self.path))
        try:
            with path.open("rb") as stream:
                metadata = _IndexUnpickler(stream).load()
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError) as error:
            raise UserError(f"{path}: not the index of a checkpoint: {error}") from None
        assert isinstance(metadata, Metadata)
        for info in cast(dict[Any, Any], metadata.storage_data).values():
            if Path(info.relative_path).name != info.relative_path:
                raise UserError(f"{path}: points outside the checkpoint: {info.relative_path}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in INDEX_CLASSES.get(module, ()) or (module == "torch" and name in DTYPES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")
