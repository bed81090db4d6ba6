"""Files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchrec_xd.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a text file, and its folder: under another name first, then renamed, so that no reader sees half of it.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}; make room, or name another place") from None


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write JSON the same way. NaN and infinity, which JSON does not have, raise a ValueError."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
