"""The tables that a module holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.planner.utils import sharder_name
from torchrec.distributed.types import ModuleSharder


@dataclass(frozen=True)
class TableRef:
    """A table of a module."""

    path: str
    """Path of the collection inside the module."""
    name: str
    rows: int
    dim: int
    dtype: str
    """Type of the weights as torch names it, for example `float32`."""
    features: tuple[str, ...]
    parameter: nn.Parameter
    module: nn.Module
    sharder: ModuleSharder[nn.Module]

    @property
    def fqn(self) -> str:
        """Path and name, unique in a module."""
        return f"{self.path}.{self.name}" if self.path else self.name


def module_tables(module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]]) -> list[TableRef]:
    """The tables that `sharders` would shard, collection by collection."""
    sharder_of = {sharder_name(sharder.module_type): sharder for sharder in sharders}
    found: list[TableRef] = []
    stack = [("", module)]
    while stack:
        path, child = stack.pop(0)
        sharder = sharder_of.get(sharder_name(type(child)))
        if sharder is None:
            stack.extend((f"{path}.{name}" if path else name, below) for name, below in child.named_children())
            continue
        features = _features_by_table(child)
        for name, parameter in sharder.shardable_parameters(child).items():
            rows, dim = parameter.shape
            dtype = str(parameter.dtype).removeprefix("torch.")
            found.append(TableRef(path, name, rows, dim, dtype, features[name], parameter, child, sharder))
    return found


def _features_by_table(collection: nn.Module) -> dict[str, tuple[str, ...]]:
    configs = getattr(collection, "embedding_bag_configs", None) or collection.embedding_configs
    assert callable(configs)
    return {config.name: tuple(config.feature_names) for config in configs()}
