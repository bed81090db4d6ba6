"""What the columns of the Parquet files mean: domains, tasks, features, embedding tables. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature, Group, VocabularySettings
from torchrec_xd.given_paths import without_secrets
from torchrec_xd.settings import Settings
from torchrec_xd.table_types import MAX_DIM

Collection = Literal["bags", "weighted_bags", "sequences"]
Split = Literal["train", "valid", "test"]
Paths = str | tuple[str, ...]
UNKNOWN_ROWS = 1
"""Rows of a table whose vocabulary no run has made yet; nothing is built of it."""
_LATER: dict[str, object] = {
    **dict.fromkeys(("nullable", "indicator", "log1p"), False),
    **dict.fromkeys(("weights", "events", "mean", "std", "clip", "missing", "vocabulary")),
}
"""Keys of tasks and features that came after the first checkpoints, with their defaults, at which they mean nothing
new."""


class Domain(Settings):
    """One domain (MKT: entity): its role, and where the rows of each split lie."""

    role: Literal["source", "target"]
    """Knowledge flows from source domains to target domains."""
    train: Paths
    """Parquet file, folder or glob, or a list of them; relative paths start at the schema's `root`."""
    valid: Paths | None = None
    """Held out at the end of the training period; settings are chosen on it."""
    test: Paths | None = None
    """Looked at for final numbers only."""

    @field_validator("train", "valid", "test")
    @classmethod
    def _check_secrets(cls, paths: Paths | None) -> Paths | None:
        for path in (paths,) if isinstance(paths, str) else paths or ():
            without_secrets(path)
        return paths

    def paths(self, split: Split) -> tuple[str, ...]:
        """Where the rows of one split lie; empty where the domain has none."""
        paths = {"train": self.train, "valid": self.valid, "test": self.test}[split]
        return (paths,) if isinstance(paths, str) else paths or ()


class Task(Settings):
    """A binary label of one domain; its name is `<label>@<domain>`."""

    label: str
    """Column of the label, 0 or 1; no dot or @ in its name."""
    domain: str
    """Domain whose rows have it."""
    nullable: bool = False
    """Whether rows may lack it (null): a conversion that is known for clicked rows only. Such rows count neither in the
    task's loss, which is then the mean over the batch's rows that have the label, nor in its metrics."""

    @property
    def name(self) -> str:
        """`<label>@<domain>`, the key of every metric."""
        return f"{self.label}@{self.domain}"


@dataclass(frozen=True)
class Table:
    """An embedding table [rows, dim] and the features that look it up."""

    name: str
    rows: int
    dim: int
    features: tuple[Feature, ...]

    @property
    def sequential(self) -> bool:
        """Whether some sequence reads it: then it is looked up row by row (EmbeddingCollection), without pooling."""
        return any(feature.kind == "sequence" for feature in self.features)

    @property
    def collection(self) -> Collection:
        """Which collection has it, and which part of a batch its ids are in.

        Where one feature is weighted, all of the table's are looked up with weights: 1 for the others.
        """
        if self.sequential:
            return "sequences"
        return "weighted_bags" if any(feature.weights for feature in self.features) else "bags"


class Schema(Settings):
    """The meaning of a data set. Order of domains and features is the order in every batch."""

    name: str
    """Name of the data set, for messages."""
    user: str
    """Column of integers or strings that groups rows for GAUC; strings are hashed to 63 bits (XXH64)."""
    domains: dict[str, Domain]
    """Domain to its role and files."""
    tasks: tuple[Task, ...]
    """The labels that are predicted; every domain has at least one."""
    features: tuple[Feature, ...]
    """The columns that models read."""
    dim: int = Field(default=8, gt=0, le=MAX_DIM)
    """Width of embeddings that do not name their own."""
    weight: str | None = None
    """Column of row weights (inverse sampling rates); metrics use it, and the loss (`trainer.weighted`)."""
    activity: str | None = None
    """Integer column with the user's recent actions; metrics are also given for < 10, 10-30 and >= 30."""
    root: str = "."
    """Folder that relative paths start from, or a URI; itself relative to the folder where the command runs."""
    vocabularies: Path | None = Field(default=None, exclude=True)
    """Never written: a run knows the folder of its vocabularies, in which raw keys are looked up; an artefact its
    file."""

    @field_validator("root")
    @classmethod
    def _check_root(cls, root: str) -> str:
        return without_secrets(root)

    def with_vocabularies(self, place: Path, rows: dict[str, int]) -> Schema:
        """The same schema, its raw keys looked up in the vocabularies of a run or an artefact.

        Args:
            place: the folder of the run's, or the file of the artefact's.
            rows: of each of their tables, by name.
        """
        features = tuple(
            f.model_copy(update={"rows": rows[f.table_name]}) if f.vocabulary and f.table_name in rows else f
            for f in self.features
        )
        return self.model_copy(update={"features": features, "vocabularies": place})

    def living_tables(self) -> dict[str, VocabularySettings]:
        """Tables with a vocabulary, by first use, to its settings."""
        return {f.table_name: f.vocabulary for f in self.features if f.vocabulary is not None}

    @model_validator(mode="after")
    def _check_tasks(self) -> Schema:
        if self.vocabularies is not None:
            raise ValueError("'vocabularies' is never written: runs make them, and find them in their folders")
        if not (self.domains and self.tasks and self.features):
            raise ValueError("a schema needs at least one domain, one task and one feature")
        names = [task.name for task in self.tasks]
        for task in self.tasks:
            self._check_domain(f"task '{task.name}'", task.domain)
            if names.count(task.name) > 1:
                raise ValueError(f"task '{task.name}' is written twice")
            if any(feature.column == task.label for feature in self.features_of(task.domain)):
                raise ValueError(f"'{task.label}' is a label of domain '{task.domain}' and cannot be its feature too")
        for domain in self.domains:
            if not any(task.domain == domain for task in self.tasks):
                raise ValueError(f"domain '{domain}' has no task; give it a label under 'tasks'")
        return self

    @model_validator(mode="after")
    def _check_features(self) -> Schema:
        columns = [feature.column for feature in self.features]
        for feature in self.features:
            if columns.count(feature.column) > 1:
                raise ValueError(f"feature '{feature.column}' is written twice")
            for domain in feature.domains or ():
                self._check_domain(f"feature '{feature.column}'", domain)
        for name, sequence in self.sequences().items():
            self._check_events(name, sequence)
        labels = [task.label for task in self.tasks]
        columns += self.sequences()
        for name in (*self.domains, *labels, *columns, *(table.name.removeprefix("t_") for table in self.tables())):
            if not name or "." in name:
                raise ValueError(
                    f"domains, labels, columns and tables name torch modules: '{name}' is empty or has a dot; "
                    "rename it, a column in the files too"
                )
        for name in (*self.domains, *labels):
            if "@" in name:
                raise ValueError(f"'{name}' has an '@', which separates label and domain in the names of tasks")
        return self

    @staticmethod
    def _check_events(name: str, sequence: tuple[Feature, ...]) -> None:
        first = sequence[0]
        for other in sequence[1:]:
            if other.events != first.events:
                raise ValueError(
                    f"events '{name}' are named like the sequence '{name}', which is not one of them: rename"
                )
            if (other.length, other.domains) != (first.length, first.domains):
                raise ValueError(
                    f"sequences '{first.column}' and '{other.column}' are columns of the events '{name}': give them "
                    "the same length and domains"
                )

    def _check_domain(self, who: str, domain: str) -> None:
        if domain not in self.domains:
            raise ValueError(f"{who} names domain '{domain}'; domains are: {', '.join(self.domains)}")

    def dim_of(self, feature: Feature) -> int:
        """Embedding width of a feature."""
        return feature.dim or self.dim

    def features_of(self, domain: str, group: Group | None = None) -> tuple[Feature, ...]:
        """The features that rows of `domain` carry, in schema order; with `group` those of one group."""
        return tuple(
            feature
            for feature in self.features
            if (feature.domains is None or domain in feature.domains) and group in (None, feature.group)
        )

    def sequences(self) -> dict[str, tuple[Feature, ...]]:
        """What models read as one sequence: name of events to their columns, or a column's name to it alone."""
        found: dict[str, tuple[Feature, ...]] = {}
        for feature in self.features:
            if feature.kind == "sequence":
                name = feature.events or feature.column
                found[name] = (*found.get(name, ()), feature)
        return found

    def tables(self) -> tuple[Table, ...]:
        """All embedding tables, by first use.

        Raises:
            ValueError: features share a table with different `rows`, `dim` or `hash`, or its width is no multiple of 4.
        """
        by_name: dict[str, list[Feature]] = {}
        for feature in self.features:
            if feature.has_table:
                by_name.setdefault(feature.table_name, []).append(feature)
        tables = []
        for name, features in by_name.items():
            first = features[0]
            for other in features[1:]:
                if self._table_keys(other) != self._table_keys(first):
                    one, two = (
                        f"'{feature.column}' ({', '.join(f'{k} {v}' for k, v in self._table_keys(feature).items())})"
                        for feature in (first, other)
                    )
                    raise ValueError(
                        f"table '{first.table or first.column}' is shared by {one} and {two}; features that share a "
                        "table need equal rows, dim and hash"
                    )
            _check_pooled(features)
            if self.dim_of(first) % 4:
                whose = f"feature '{first.column}'" if first.dim else f"the schema, for feature '{first.column}'"
                raise ValueError(
                    f"{whose}: dim {self.dim_of(first)} is no multiple of 4, as FBGEMM needs it; "
                    f"{self.dim_of(first) // 4 * 4 + 4} is the next one"
                )
            tables.append(Table(name, first.rows or UNKNOWN_ROWS, self.dim_of(first), tuple(features)))
        return tuple(tables)

    def sized_tables(self) -> tuple[Table, ...]:
        """All embedding tables, where it is known how many rows they have.

        Raises:
            UserError: no run has made the vocabulary of one yet.
        """
        for feature in self.features:
            if feature.has_table and feature.rows is None:
                raise UserError(
                    f"feature '{feature.column}': a run makes its vocabulary, and only then the rows of its table are "
                    "known; without a run, write the number that you expect: rows"
                )
        return self.tables()

    def _table_keys(self, feature: Feature) -> dict[str, object]:
        """What features that share a table have in common, or an id of one would mean another thing to the other."""
        keys: dict[str, object] = {"rows": feature.rows, "dim": self.dim_of(feature), "hash": feature.hash}
        return keys if feature.vocabulary is None else {**keys, "vocabulary": feature.vocabulary.model_dump()}

    def targets(self) -> tuple[str, ...]:
        """Names of the target domains."""
        return tuple(name for name, domain in self.domains.items() if domain.role == "target")

    def only(self, domains: tuple[str, ...]) -> Schema:
        """The same schema seen by a model that reads `domains` alone: other domains' tasks and features are gone.

        Raises:
            UserError: no domain, or an unknown one.
        """
        if not domains:
            raise UserError(f"no domain is named (schema '{self.name}' has: {', '.join(self.domains)})")
        unknown = [name for name in domains if name not in self.domains]
        if unknown:
            raise UserError(f"unknown domain '{unknown[0]}' (schema '{self.name}' has: {', '.join(self.domains)})")
        features = []
        for feature in self.features:
            left = feature.domains and tuple(name for name in feature.domains if name in domains)
            if left != ():
                features.append(feature.model_copy(update={"domains": left}))
        return self.model_copy(
            update={
                "domains": {name: self.domains[name] for name in self.domains if name in domains},
                "tasks": tuple(task for task in self.tasks if task.domain in domains),
                "features": tuple(features),
            }
        )

    def only_tasks(self, tasks: tuple[str, ...]) -> Schema:
        """The same schema with these tasks alone, in its own order.

        Raises:
            UserError: an unknown task, or a domain that is left without one.
        """
        names = [task.name for task in self.tasks]
        for name in tasks:
            if name not in names:
                raise UserError(f"unknown task '{name}' (schema '{self.name}' has: {', '.join(names)})")
        kept = tuple(task for task in self.tasks if task.name in tasks)
        for domain in self.domains:
            if all(task.domain != domain for task in kept):
                raise UserError(f"tasks: domain '{domain}' is left without a task; leave it out too: domains: [NAME]")
        return self.model_copy(update={"tasks": kept})

    def without(self, columns: tuple[str, ...]) -> Schema:
        """The same schema without some features.

        Raises:
            UserError: a column that is no feature.
        """
        for column in columns:
            if all(feature.column != column for feature in self.features):
                known = ", ".join(feature.column for feature in self.features)
                raise UserError(f"without: '{column}' is no feature of schema '{self.name}'; features are: {known}")
        return self.model_copy(update={"features": tuple(f for f in self.features if f.column not in columns)})

    def dropping_unseen_ids(self) -> Schema:
        """The same schema, by which ids that lie outside their tables are left out like nulls."""
        features = [
            f.model_copy(update={"hash": "drop"}) if f.has_table and f.hash == "none" and f.vocabulary is None else f
            for f in self.features
        ]
        return self.model_copy(update={"features": tuple(features)})

    def hashing_keys(self) -> Schema:
        """The same schema, raw keys hashed into a few rows: for what needs no run's vocabularies, nor their rows."""
        hashed = {"vocabulary": None, "hash": "xxhash"}
        features = (f.model_copy(update={**hashed, "rows": f.rows or 2}) if f.vocabulary else f for f in self.features)
        return self.model_copy(update={"features": tuple(features)})

    def fingerprint(self) -> str:
        """Hash of what the columns mean (not of where the files lie): checkpoints carry it."""
        meaning = self.model_dump(exclude={"root": True, "domains": {"__all__": {"train", "valid", "test"}}})
        for feature in meaning["features"]:
            if feature["vocabulary"] is not None:
                feature["vocabulary"] = {}  # how it lives may change: keys keep their rows
        for part in (*meaning["tasks"], *meaning["features"]):
            for key, default in _LATER.items():
                if part.get(key, ...) == default:
                    del part[key]
        text = json.dumps(meaning, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_pooled(features: list[Feature]) -> None:
    """A table is looked up pooled or row by row, whole: ids do either way, bags and sequences one each."""
    first = {feature.kind: feature for feature in reversed(features)}
    if "bag" in first and "sequence" in first:
        raise ValueError(
            f"bag '{first['bag'].column}' and sequence '{first['sequence'].column}' share a table, which would be "
            "looked up pooled for the one and row by row for the other: give the bag a table of its own, table: NAME"
        )
