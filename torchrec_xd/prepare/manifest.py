"""The manifest of a prepared data set, and its folder: complete or not there, never somebody else's."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings

NAME = "manifest.json"
PACKAGE = Path(__file__).parents[1]
SOURCES = ("datasets", "prepare")
"""Folders of the package whose code decides every row."""


class SplitRows(Settings):
    """One split of a domain."""

    rows: int
    positives: int
    files: dict[str, int]
    """Path below the data set's folder -> rows."""
    labels: dict[str, int] = Field(default_factory=dict)
    """Of a recipe's data set: label -> positives."""


class Identity(Settings):
    """What decides every row: equal identities, equal data sets."""

    data_set: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    """File -> SHA-256."""
    code: str
    """SHA-256 of the code that prepares data sets."""


class Manifest(Settings):
    """What a prepared data set is made of, `manifest.json` in its folder."""

    identity: Identity
    provenance: str
    notes: tuple[str, ...]
    """What a reader of results should know."""
    dropped: dict[str, int]
    """Rows of the raw data that were left out, by reason."""
    sampling: dict[str, float]
    """What was sampled -> the share that was kept."""
    cardinalities: dict[str, int]
    """Vocabulary -> values that training saw; their rows are 1, 2 …"""
    domains: dict[str, dict[str, SplitRows]]
    """Domain -> split."""
    oracle: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Of a planted world: task -> metric -> what the true probabilities reach on the test rows."""
    noise_features: tuple[str, ...] = ()
    """Of a planted world: features that mean nothing."""
    reports: tuple[str, ...] = ()
    """Files for people to read, below the data set's folder."""
    versions: dict[str, str]
    """Of what computed the rows; they should not matter."""


def identity(data_set: str, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> Identity:
    """The identity of a data set about to be prepared; reads all inputs and the sources of this package."""
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs.values()}
    return Identity(data_set=data_set, settings=dict(settings), inputs=checksums, code=code())


def code() -> str:
    """SHA-256 of the sources of this package that prepare data sets."""
    found = hashlib.sha256()
    for source in sorted(path for folder in SOURCES for path in (PACKAGE / folder).rglob("*.py")):
        found.update(source.relative_to(PACKAGE).as_posix().encode() + b"\0" + source.read_bytes())
    return found.hexdigest()


def versions(engine: str) -> dict[str, str]:
    """Installed versions of what computes the rows."""
    packages = ("ibis-framework", "pyspark" if engine == "spark" else engine, "pyarrow")
    return {name: version(name) for name in packages}


def reusable(folder: Path, wanted: Identity) -> Manifest | None:
    """The manifest of a complete data set of the wanted identity, None where `folder` may be made or made anew.

    Raises:
        UserError: the folder holds anything that `prepare` did not write.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    except (OSError, ValidationError):
        raise UserError(
            f"{folder}: exists, and this version of 'prepare' did not make it (no readable {NAME}); "
            "it is left as it is; delete it yourself, or name another folder"
        ) from None
    splits = [split for domain in manifest.domains.values() for split in domain.values()]
    known = {NAME, *manifest.reports, *(file for split in splits for file in split.files)}
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    if not found <= known:
        raise UserError(f"{folder}: holds {min(found - known)}, which 'prepare' did not write; move it away")
    return manifest if found == known and manifest.identity == wanted else None


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder next to `folder`, which takes its place when the block ends well and vanishes when it does not.

    Raises:
        UserError: no folder can be made there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); name another folder") from None
    with made as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
