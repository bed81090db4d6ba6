"""Columns that the names of folders hold: `logs/day=2024-05-31/part-0.parquet`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrec_xd.errors import UserError


@dataclass(frozen=True)
class Partitions:
    """Folders `NAME=VALUE` on the way to all files of an input."""

    names: tuple[str, ...] = ()
    base: str = ""
    """The folder that the first of them lies in."""


NO_PARTITIONS = Partitions()


def partitions(paths: Sequence[str], columns: Iterable[str]) -> Partitions:
    """The folders that are columns of files: those whose names all paths have and the files do not.

    Args:
        paths: absolute.
        columns: of the files.

    Raises:
        UserError: of several such folders some have the name of a column of the files.
    """
    found = {_partitions(path) for path in paths}
    if len(found) > 1 or not (own := found.pop()).names:
        return NO_PARTITIONS
    lower = {column.lower() for column in columns}
    both = [name for name in own.names if name.lower() in lower]
    if both and len(both) < len(own.names):
        others = ", ".join(name for name in own.names if name not in both)
        raise UserError(
            f"{paths[0]}: the file has a column '{both[0]}', and one of its folders has the same name, so that "
            f"{others} cannot be read from the folders; rename the column or that folder"
        )
    return NO_PARTITIONS if both else own


def _partitions(path: str) -> Partitions:
    parts = Path(path).parent.parts
    places = [i for i, part in enumerate(parts) if part.find("=") > 0]
    base = str(Path(*parts[: places[0]])) if places else ""
    return Partitions(tuple(parts[i].partition("=")[0] for i in places), base)
