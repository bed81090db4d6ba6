"""An exported artefact: a folder of checked files that says what it holds, and which version is the current one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field

from torchrec_xd.data.key_rows import KeyRows, read_key_rows
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import sha256
from torchrec_xd.schema import Schema
from torchrec_xd.serving.delta import VOCABULARIES, complete
from torchrec_xd.settings import Settings, validate
from torchrec_xd.strict_yaml import parse_yaml

FORMAT: Literal[2] = 2
"""Of the artefacts that this version writes and reads."""
MANIFEST, SCHEMA, NET, SAMPLE = "manifest.json", "schema.yaml", "net.onnx", "sample.parquet"
READY, CURRENT, VERSIONS, ENCODERS = "READY", "current.json", "versions", "encoders"
CHANGES = "changes.txt"
"""Of a version with changes since another one: the files to copy to where that one is, a name a line."""
REQUEST_OF = "request_of"
"""Input of the net: each candidate's row of the request side, int64 `[B]`."""
WORDS = "encoders/"
"""Begins the names of the encoders' vocabularies, next to those of tables of raw keys."""
TEACHER = "teacher"
"""Marks inputs and tables of a frozen teacher."""
GATE = "gate/"
"""Begins the outputs that say how far a gate stands open."""
InputKind = Literal["pooled", "sequence", "length", "dense", "vector"]
TablesDtype = Literal["fp32", "fp16", "int8"]


class NetInput(Settings):
    """One input of the net: `SIDE/KIND/COLUMN`, of a teacher's tables `SIDE/KIND/COLUMN@teacher`."""

    name: str
    """Of the input."""
    columns: tuple[str, ...]
    """Of the features whose vectors or numbers lie side by side in it."""
    kind: InputKind
    """`pooled`: ids and bags, a vector of each; `length`: of a sequence; `dense`: numbers, one of each."""
    tables: tuple[str, ...] = ()
    """Where the vectors of each column are looked up."""


class TableEntry(Settings):
    """One table of `tables.safetensors`."""

    rows: int
    dim: int
    dtype: TablesDtype
    """int8 (bytes from 0 to 255): with the half floats `NAME/scale` and `NAME/offset` of each row, a number is
    `unit * (byte / 255 * scale + offset)`."""
    unit: float = 1.0
    """Of int8: the largest number of the table."""
    pooling: Literal["sum", "mean"] = "sum"
    """How its bags become one vector."""


class ArtifactManifest(Settings):
    """manifest.json: what an artefact holds, where it comes from and what was measured."""

    format: Literal[2] = FORMAT
    """Version of the layout."""
    written_by: str
    """Version of torchrec-xd."""
    model: str
    """Name of the model."""
    run: str
    """Name of the run folder."""
    checkpoint: str
    """Name of the checkpoint."""
    domain: str
    """The one domain that is scored."""
    fingerprint: str
    """Of the run's schema."""
    tasks: tuple[str, ...]
    """Of the domain."""
    outputs: tuple[str, ...]
    """Of the net: tasks, then auxiliary scores, then `gate/NAME`: how far each gate stands open, from 0 to 1."""
    inputs: tuple[NetInput, ...]
    """Of the net, besides `request_of`."""
    tables: dict[str, TableEntry]
    """Name to what it is."""
    tables_dtype: TablesDtype
    """Of all tables."""
    id_kinds: dict[str, Literal["integers", "strings"]] = Field(default_factory=dict)
    """Table of hashed ids, or "" for users, to what the run was trained on."""
    tolerance: float
    """Largest difference to the run's scores that was allowed."""
    difference: float
    """Largest difference to the run's scores on the sample, with tables as they were trained."""
    auc_change: dict[str, float] = Field(default_factory=dict)
    """Task to what narrower tables change in its AUC, on the split below."""
    auc_split: str | None = None
    """Split of the run on which that was measured."""
    since: int | None = Field(default=None, ge=1)
    """Version next to this one whose files are taken where this one lacks some. Default: it lacks none."""
    files: dict[str, str] = Field(default_factory=dict)
    """Every other file to its SHA-256."""


@dataclass(frozen=True)
class Artifact:
    """One version of an exported model, checked."""

    folder: Path
    """`OUT/versions/N`."""
    version: int
    manifest: ArtifactManifest
    schema: Schema
    """Of the exported domain alone: the features that its net reads, its tasks."""

    @staticmethod
    def open(folder: Path, *, check: bool = True) -> Artifact:
        """Read an artefact. One that was copied as changes is completed first: its folder then has all files.

        Args:
            folder: `OUT/versions/N`.
            check: whether every file is compared with its checksum.

        Raises:
            UserError: it is no artefact, of another format, not finished, or damaged.
        """
        manifest = _manifest(folder)
        if not (folder / READY).is_file():
            raise UserError(f"{folder} is not finished: it has no {READY}; export again")
        if manifest.since is not None and any(not (folder / name).exists() for name in manifest.files):
            base = folder.parent / str(manifest.since)
            if not base.is_dir():
                raise UserError(
                    f"{folder} holds what changed since version {manifest.since}, and {base} is not there: copy it, "
                    "or all files of this version"
                )
            complete(folder, base, manifest.files, Artifact.open(base, check=False).manifest.files)
        for name, expected in manifest.files.items() if check else ():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{folder / MANIFEST}: '{name}' lies outside its folder; export again")
            if not path.is_file():
                raise UserError(f"{folder} is damaged: {name} is missing; export again")
            try:
                found = sha256(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error}; let this user read it, or export again") from None
            if found != expected:
                raise UserError(
                    f"{folder} is damaged: {name} was cut short or changed (its checksum differs); export again"
                )
        version = int(folder.name) if folder.name.isdecimal() else 0
        return Artifact(folder, version, manifest, with_own_vocabularies(_schema(folder / SCHEMA), folder))

    @property
    def encoders(self) -> Path | None:
        """The folder of the run's encoders, where it had some."""
        found = self.folder / ENCODERS
        return found if found.is_dir() else None

    def words(self) -> dict[str, KeyRows]:
        """Rows of the values of the encoders' vocabularies, mapped.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / VOCABULARIES
        found = read_key_rows(path) if path.is_file() else {}
        return {name.removeprefix(WORDS): rows for name, rows in found.items() if name.startswith(WORDS)}

    def sample(self) -> tuple[pa.Table, pa.Table]:
        """Prepared rows of the domain, with the columns of the schema; and their outputs, a float32 column each.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.folder / SAMPLE
        try:
            table = pq.ParquetFile(path).read()  # read_table would import all of pyarrow.dataset
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} cannot be read: {error}; export again") from None
        names = [f"score_{name}" for name in self.manifest.outputs]
        return table.drop_columns(names), table.select(names).rename_columns(list(self.manifest.outputs))


def current_version(out: Path) -> Path:
    """The current version's folder, by `OUT/current.json`.

    Raises:
        UserError: nothing was exported to there, or the file is damaged.
    """
    path = out / CURRENT
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{out} has no {CURRENT}: name the --out of a finished 'torchrec-xd export'") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; export again") from None
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f'{path}: expected {{"version": NUMBER}}, got {content!r}; export again')
    return out / VERSIONS / str(version)


def find_artifact(place: Path) -> Path:
    """The folder of an artefact, given it or the `--out` of exports, whose current version is meant."""
    return place if (place / MANIFEST).is_file() else current_version(place)


def _manifest(folder: Path) -> ArtifactManifest:
    path = folder / MANIFEST
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no artefact: it has no {MANIFEST}; name the --out of 'torchrec-xd export'"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; export again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found is None:
        raise UserError(f"{path}: is no manifest of an artefact, which says its format; name the --out of an export")
    if found != FORMAT:
        raise UserError(
            f"{path}: format {found!r}, and this version of torchrec-xd reads {FORMAT}; export again with it"
        )
    return validate(ArtifactManifest, content, str(path))


def _schema(path: Path) -> Schema:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; export again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no schema; export again")
    return validate(Schema, content, str(path))


def with_own_vocabularies(schema: Schema, folder: Path) -> Schema:
    """The same schema; where the artefact in a folder has vocabularies, raw keys are looked up in them."""
    path = folder / VOCABULARIES
    return schema.with_vocabularies(path, {}) if path.is_file() else schema


def dump_schema(schema: Schema) -> str:
    """The content of `schema.yaml`."""
    return yaml.safe_dump(schema.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
