"""What files agree on: an id is an integer everywhere or a string everywhere, and a file belongs to one split."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from pyarrow import fs

from torchrec_xd.atomic_write import write_json
from torchrec_xd.data.arrow import IdKind
from torchrec_xd.data.locations import find_files
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema, Split


@dataclass(frozen=True)
class FoundKind:
    """What a file holds that is looked up in a hashed embedding table, or as users."""

    table: str
    """Empty for users."""
    kind: IdKind
    column: str
    file: str


def agreed(found: Iterable[FoundKind]) -> dict[str, FoundKind]:
    """The first of each table.

    Raises:
        UserError: a table's ids, or the users, are integers in one file and strings in another: hashed, one would count
            as two.
    """
    first: dict[str, FoundKind] = {}
    for other in found:
        one = first.setdefault(other.table, other)
        if one.kind != other.kind:
            if not one.table:
                raise UserError(
                    f"users are {one.kind} in {one.file} (column '{one.column}') and {other.kind} in {other.file}; the "
                    "same user would count as two: write both with one type"
                )
            raise UserError(
                f"table '{one.table.removeprefix('t_')}': ids are {one.kind} in {one.file} (column '{one.column}') and "
                f"{other.kind} in {other.file} (column '{other.column}'); hashed, the same id would get different "
                "rows: write both with one type, or give them tables of their own"
            )
    return first


def save_kinds(path: Path, kinds: Iterable[FoundKind]) -> None:
    """Write down what a run was trained on, so that later rows can be compared with it."""
    write_json(path, [asdict(kind) for kind in kinds])


def read_kinds(path: Path) -> list[FoundKind]:
    """What a run was trained on; nothing of a run by an earlier version, which did not write it down.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return [FoundKind(**kind) for kind in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def refuse_shared_files(schema: Schema, patience: Patience = Patience()) -> None:  # noqa: B008 - frozen
    """Check that no file belongs to two splits, of whatever domains; splits that cannot be found are passed over.

    Raises:
        UserError: a file is read by two splits, so that a model would be measured on rows that it has seen.
        OutageError: the store does not answer.
    """
    owners: dict[tuple[str, str], tuple[str, Split]] = {}
    for name, domain in schema.domains.items():
        for split in get_args(Split):
            try:
                filesystem, files = find_files(domain.paths(split), schema.root, patience)
            except UserError:  # told when that split is read
                continue
            local = isinstance(filesystem, fs.LocalFileSystem)
            for file in files:
                own = (filesystem.type_name, os.path.realpath(file) if local else file)
                other, before = owners.setdefault(own, (name, split))
                if before != split:
                    raise UserError(
                        f"{file} belongs to the {before} split of domain '{other}' and to the {split} split of domain "
                        f"'{name}'; a file belongs to one split: name folders or files that the splits do not share"
                    )
