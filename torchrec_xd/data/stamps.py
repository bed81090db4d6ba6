"""The files that a run reads, written down with it, and what has become of them since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter

from torchrec_xd.atomic_write import write_json
from torchrec_xd.data.files import FileStamp, ParquetFiles
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema, Split

DataStamps: TypeAlias = dict[Split, dict[str, tuple[FileStamp, ...]]]
"""Split, then domain, to its files."""
_STAMPS = TypeAdapter(DataStamps)


def current_stamps(schema: Schema, splits: Iterable[Split], patience: Patience) -> DataStamps:
    """The files as they lie there now; their footers are read, and the columns of `stamped_columns`.

    Raises:
        UserError: files are missing or damaged.
        OutageError: the store does not answer.
    """
    return {
        split: {
            name: ParquetFiles(domain.paths(split), schema.root, lambda file, columns: None, patience=patience).stamps(
                stamped_columns(schema, name)
            )
            for name, domain in schema.domains.items()
        }
        for split in splits
    }


def stamped_columns(schema: Schema, domain: str) -> tuple[str, ...]:
    """Columns whose values a stamp knows: those that metrics rest on, a small part of a file's bytes."""
    labels = [task.label for task in schema.tasks if task.domain == domain]
    return (*labels, schema.user, *([schema.weight] if schema.weight else []))


def save_stamps(path: Path, stamps: DataStamps) -> None:
    """Write them down as JSON."""
    write_json(path, _STAMPS.dump_python(stamps, mode="json"))


def read_stamps(path: Path) -> DataStamps:
    """What `save_stamps` wrote; nothing of a run by version 0.2 or before, which wrote nothing.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return _STAMPS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is damaged ({reason}): whether the data have changed cannot be told; if they have not, delete it"
        ) from None


def data_changes(before: DataStamps, now: DataStamps, most: int = 5) -> str:
    """What differs between the files of the splits that both have, a line each; empty where nothing does."""
    found = [
        f"  {split} files of domain '{domain}': {change}"
        for split in now
        if split in before
        for domain in {**before[split], **now[split]}
        for change in _changes(before[split].get(domain, ()), now[split].get(domain, ()))
    ]
    return "\n".join([*found[:most], *([f"  and {len(found) - most} more"] if len(found) > most else [])])


def _changes(before: tuple[FileStamp, ...], now: tuple[FileStamp, ...]) -> Iterator[str]:
    there, here = ({stamp.name: stamp for stamp in stamps} for stamps in (before, now))
    yield from (f"{name} was added ({here[name].rows:,} rows)" for name in here if name not in there)
    yield from (f"{name} is gone ({there[name].rows:,} rows)" for name in there if name not in here)
    for name in here:
        if name in there and here[name] != there[name]:
            sizes = [f"{stamp.rows:,} rows and {stamp.size:,} bytes" for stamp in (there[name], here[name])]
            yield f"{name} was written again ({sizes[0]} before, {sizes[1]} now)"
