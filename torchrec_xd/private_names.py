"""The private parts of torch, torchrec and FBGEMM that this package needs: here and nowhere else, by test.

A new version of a dependency may change any of them without a word. When a pin moves: run the tests, read in the new
version what each function below relies on (its docstring names it), and raise the pin here and in pyproject.toml.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.distributed.optim import (  # type: ignore[attr-defined]
    _apply_optimizer_in_backward,
)
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchDispatchMode"]

PINS = {"torch": "2.14", "torchrec": "1.9"}
"""Versions whose private parts were read."""

for _package, _pin in PINS.items():
    if not f"{version(_package)}.".startswith(f"{_pin}."):
        raise ImportError(
            f"{_package} {version(_package)} is installed, but this package relies on private parts of {_package} "
            f"{_pin}: install {_package} {_pin}.*, or check every function of {__file__} against the new version"
        )

INDEX_CLASSES = {
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""All classes that the index of a torch checkpoint of tensors is made of, besides torch's dtypes."""


def apply_optimizer_in_backward(
    optimizer: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], settings: Mapping[str, Any]
) -> None:
    """Have the backward pass apply an optimizer, which torchrec's fused kernels then read.

    This is torch's `_apply_optimizer_in_backward`: torchrec's public wrapper of it is being phased out.
    """
    _apply_optimizer_in_backward(optimizer, parameters, dict(settings))


def announce_optimizer(parameters: Iterable[nn.Parameter], optimizer: type[torch.optim.Optimizer]) -> None:
    """Tell torchrec's storage estimator which fused optimizer parameters will have (`_optimizer_classes`)."""
    for parameter in parameters:
        parameter._optimizer_classes = [optimizer]  # type: ignore[attr-defined]


def copy_announced_optimizer(source: nn.Parameter, target: nn.Parameter) -> None:
    """Announce for one parameter what was announced for another."""
    target._optimizer_classes = getattr(source, "_optimizer_classes", [None])  # type: ignore[attr-defined]


def set_lookup_group(table: nn.Parameter, group: int) -> None:
    """Keep tables of different groups in kernels of their own.

    Torchrec groups by the settings of a table's fused optimizer (`_optimizer_kwargs`), of which `_batch_key` has no
    other effect.
    """
    settings = table._optimizer_kwargs[0]  # type: ignore[attr-defined]
    table._optimizer_kwargs = [{**settings, "_batch_key": group}]  # type: ignore[attr-defined]


def sharded_lookups(collection: nn.Module) -> Iterator[Any]:
    """The lookup modules of a sharded collection, which torchrec hides from `modules()` (`_lookups`)."""
    yield from collection._lookups  # type: ignore[misc]


def lookup_kernels(lookup: Any) -> Any:
    """The kernels of a lookup, a list that may be changed in place (`_emb_modules`)."""
    return lookup._emb_modules


def split_by_kernel(lookup: Any, features: Any) -> Any:
    """The features that each kernel of a lookup reads (`_feature_splits`)."""
    return features.split(lookup._feature_splits)


def checkpoint_files(folder: Path, rank: int) -> list[Path]:
    """The files that one rank wrote of a torch checkpoint: `__<rank>_<n>.distcp`, and of rank 0 the index."""
    return [*folder.glob(f"__{rank}_*"), *([checkpoint_index(folder)] if rank == 0 else [])]


def checkpoint_index(folder: Path) -> Path:
    """The index of a torch checkpoint."""
    return folder / ".metadata"


def operator_name(operator: Any) -> str:
    """Name of a dispatched operator, for example `aten::mm` (`_schema`)."""
    return str(operator._schema.name)


def compile_sizes_apart() -> None:
    """Have torch.compile take two sizes that are equal at first for two sizes, in this process (`use_duck_shape`).

    By default it compiles again as soon as they differ, as numbers of rows by domain soon do.
    """
    torch.fx.experimental._config.use_duck_shape = False


def storage_key(tensor: Tensor) -> int:
    """What tells two tensors apart that do not share memory (`_cdata`)."""
    return int(tensor.untyped_storage()._cdata)


def leave_at_once(code: int) -> NoReturn:
    """End this process, whatever its other threads wait for (`os._exit`, which is documented)."""
    os._exit(code)
