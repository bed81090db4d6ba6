"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from torchrec_xd.errors import OutageError, UserError

_GONE = (errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO, errno.ENETDOWN, errno.ENETUNREACH, errno.ESTALE)
"""What a file system on a network says when its server is gone, with `ConnectionError` and `TimeoutError`."""


def disk_is_gone(error: BaseException) -> bool:
    """Whether a disk did not answer, which is an outage; one that is full, or another's, is the user's to correct."""
    return isinstance(error, OSError) and (isinstance(error, ConnectionError | TimeoutError) or error.errno in _GONE)


def write_text(path: Path, text: str) -> None:
    """Write a text file, and its folder: under another name first, then renamed, so that no reader sees half of it.

    Raises:
        UserError: it cannot be written.
        OutageError: the disk does not answer.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        if disk_is_gone(error):
            raise OutageError(
                f"outage: {path} cannot be written: {error}\n"
                "give the same command again when the disk answers, train with --resume"
            ) from error
        raise UserError(f"{path} cannot be written: {error}; make room, or name another place") from None


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write JSON the same way. NaN and infinity, which JSON does not have, raise a ValueError."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
