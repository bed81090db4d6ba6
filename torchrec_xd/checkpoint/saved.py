"""What a checkpoint says of itself: `position.json`."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint.scores import Scores
from torchrec_xd.errors import UserError

POSITION = "position.json"
CHECKPOINT = re.compile(r"(step|partial)_\d{9,}")
"""Names of folders that `Checkpoints.save` makes."""


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint's `position.json`."""

    step: int
    """Optimizer steps since the run began, whatever the number of processes that took them."""
    position: LoaderState
    world_size: int
    schema: str
    """Fingerprint of the schema."""
    score: float | None = None
    """The monitored validation metric, where it was measured; larger is better."""
    files: dict[str, int] = field(default_factory=dict)
    """CRC-32 of every other file."""
    epoch_steps: int | None = None
    """Steps of an epoch, for the processes and files that `position` counts in; None in runs of 0.2 and before."""
    scores: Scores = field(default_factory=Scores)
    """Of the validations so far."""
    validated: bool = True
    """False from when an epoch is saved until it is validated: a run that ended in between does so when it resumes."""


def read_saved(folder: Path) -> Saved:
    """The description of a checkpoint.

    Raises:
        UserError: the folder is no checkpoint of ours.
    """
    try:
        content = json.loads((folder / POSITION).read_bytes())
        own = content.pop("checksum", None) if isinstance(content, dict) else None
        if own is not None and own != _checksum_of(content):  # checkpoints of 0.2 and before have none
            raise ValueError("it has been changed")
        saved = TypeAdapter(Saved).validate_python(content)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no checkpoint: {POSITION}: {error}") from None
    if CHECKPOINT.fullmatch(folder.name) and step_of(folder) != saved.step:
        raise UserError(f"{folder} was renamed: it holds step {saved.step}")
    return saved


def write_saved(folder: Path, saved: Saved) -> None:
    """Write the description of a checkpoint whole or not at all, with a checksum of its own."""
    content = json.loads(json.dumps(asdict(saved)))
    partial = folder / f"{POSITION}.partial"
    partial.write_text(json.dumps({**content, "checksum": _checksum_of(content)}))
    partial.replace(folder / POSITION)


def _checksum_of(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def step_of(folder: Path) -> int:
    """The step in a folder's name."""
    return int(folder.name.rpartition("_")[2])


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            value = zlib.crc32(block, value)
    return value
