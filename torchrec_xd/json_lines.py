"""Files of one JSON object per line that grow line by line; a process that was killed may leave half a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchrec_xd.errors import UserError


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The objects of a file, and the unfinished line at its end that is not among them ('' where there is none).

    Raises:
        UserError: a line before the last is damaged; names file and line.
    """
    try:
        *lines, unfinished = path.read_bytes().split(b"\n")
        return [_object(line, f"{path}:{number}") for number, line in enumerate(lines, 1)], unfinished.decode(
            errors="replace"
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def drop_unfinished_line(path: Path) -> str:
    """Cut off a line that was not finished, after checking all others; returns it, '' where there is none.

    Raises:
        UserError: a line before the last is damaged; names file and line.
    """
    _, unfinished = read_json_lines(path)
    if unfinished:
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rindex(b"\n") + 1 if b"\n" in content else 0)
    return unfinished


def _object(line: bytes, origin: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{origin}: no JSON object but {line[:60].decode(errors='replace')!r}: the file is damaged; restore it "
            "from a copy, or move it away to begin anew"
        )
    return found
