"""Outputs are checked before the work, not after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import local_path

T = TypeVar("T")


def check_output_file(path: str | Path, option: str) -> None:
    """Check that a file can be written later, as far as one can tell without writing; missing folders will be made.

    Raises:
        UserError: it is a folder or no local path, or lies below a file or in a folder that may not be written.
    """
    local_path(path, option)
    if _try(Path(path).is_dir, f"{option} {path}"):
        raise UserError(f"{option} {path} is a folder; name a file in it")
    _check_folder(Path(path).absolute().parent, f"{option} {path}")


def check_output_folder(path: str | Path, option: str) -> None:
    """The same for a folder of outputs."""
    local_path(path, option)
    _check_folder(Path(path).absolute(), f"{option} {path}")


def _try(look: Callable[[], T], what: str) -> T:
    try:
        return look()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UserError(f"{what} cannot be written: {error}; name another place") from None


def _check_folder(folder: Path, what: str) -> None:
    above = (folder, *folder.parents)
    there = _try(lambda: next(path for path in above if path.exists() or path.is_symlink()), what)
    if not there.is_dir():
        raise UserError(f"{what} cannot be written: {there} is no folder; name another place")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{what} cannot be written: no permission to write in {there}; name another place")
