"""Modules by name, for names that users choose."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class ModuleMap(nn.Module):
    """nn.ModuleDict for any name without a dot: a domain may be called `items` or `train`, a column `keys`."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(modules)
        for name, module in modules.items():
            self.add_module(f"m_{name}", module)

    def __getitem__(self, name: str) -> nn.Module:
        return self.get_submodule(f"m_{name}")
