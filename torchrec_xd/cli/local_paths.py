"""Commands whose paths are on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from torchrec_xd.given_paths import local_path

P = ParamSpec("P")
T = TypeVar("T")


def local_paths(command: Callable[P, T]) -> Callable[P, T]:
    """A command that checks its parameters of type Path first; one that may name a store is a string."""
    names = {name: _written(name, kind) for name, kind in get_type_hints(command, include_extras=True).items()}

    @functools.wraps(command)
    def checked(*args: P.args, **given: P.kwargs) -> T:
        for name, value in given.items():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, Path):
                    local_path(each, names[name])
        return command(*args, **given)

    return checked


def _written(name: str, kind: Any) -> str:
    """A parameter as the command line has it."""
    for info in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        if isinstance(info, OptionInfo):
            own = [each for each in info.param_decls or () if each.startswith("--")]
            return own[0] if own else f"--{name.replace('_', '-')}"
        if isinstance(info, ArgumentInfo):
            return str(info.metavar or name.upper())
    return name
