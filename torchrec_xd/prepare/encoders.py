"""What a recipe learnt from its training rows, as data: Parquet for vocabularies, JSON for numbers; never code."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Literal

from pyarrow import fs
from pydantic import Field, ValidationError

from torchrec_xd.data.filesystems import filesystem_of, join
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import UserError
from torchrec_xd.settings import Settings

FOLDER = "encoders"
NAME = "encoders.json"
RECIPE = "recipe.yaml"


class VocabularyFile(Settings):
    """One vocabulary: a Parquet file with value, row, count, first_day and last_day (days since 1970), by row."""

    file: str
    """Below the folder of the encoders."""
    sha256: str
    """Of the file."""
    values: Literal["integer", "string"]
    """What the values are."""
    rows: int
    """Rows of the embedding table: row 0 is for all other values."""


class NumberEncoder(Settings):
    """How a number is changed, in this order: bounded, its logarithm, minus the mean, divided by the deviation."""

    edges: tuple[float, ...] | None = None
    """Of buckets, ascending; null is row 0, a value is row 1 + the number of edges that it has reached."""
    missing: float = 0.0
    """What null becomes first."""
    mean: float = 0.0
    """Of training rows, after bounds and logarithm."""
    std: float = 1.0
    """Of training rows, alike."""


class Encoders(Settings):
    """All that a recipe learnt, `encoders/encoders.json`."""

    version: Literal[1] = 1
    """Of this file's layout."""
    recipe_sha256: str
    """Of the recipe that lies with it, which says how values are encoded."""
    tables: dict[str, VocabularyFile] = Field(default_factory=dict)
    """Embedding table to its vocabulary."""
    numbers: dict[str, NumberEncoder] = Field(default_factory=dict)
    """Feature to how its numbers are encoded."""


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def load_encoders(folder: Path) -> Encoders:
    """Read encoders, and check that every file is the one that was written.

    Args:
        folder: of the encoders, or of a prepared data set.

    Raises:
        UserError: there are none, or a file was changed.
    """
    place = encoders_folder(folder)
    try:
        found = Encoders.model_validate_json((place / NAME).read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{place}: no readable {NAME} ({reason}); name the folder of a prepared data set") from None
    hashes = {RECIPE: found.recipe_sha256, **{each.file: each.sha256 for each in found.tables.values()}}
    for name, expected in hashes.items():
        path = place / name
        if not path.resolve().is_relative_to(place.resolve()):
            raise UserError(f"{place / NAME}: '{name}' lies outside its folder")
        if not path.is_file() or sha256(path) != expected:
            raise UserError(f"{path}: is missing or was changed since it was written; prepare the data set anew")
    return found


def copy_encoders(data: str, to: Path, patience: Patience) -> None:
    """Copy the encoders of a prepared data set, where it has some, so that a run can encode raw rows by itself.

    Args:
        data: folder of the data set, local or on an object store.
        to: folder of the copy, which replaces an older one.
        patience: with the store.
    """
    location = join(data, FOLDER)
    filesystem, source = patience(lambda: filesystem_of(location), location)
    if patience(lambda: filesystem.get_file_info(f"{source}/{NAME}").type, location) != fs.FileType.File:
        return
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    patience(lambda: fs.copy_files(source, str(partial), filesystem, fs.LocalFileSystem()), location)
    shutil.rmtree(to, ignore_errors=True)
    partial.rename(to)


def encoders_folder(folder: Path) -> Path:
    """The folder of encoders, given it or that of a prepared data set."""
    return folder if (folder / NAME).is_file() else folder / FOLDER
