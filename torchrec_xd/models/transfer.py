"""What a model takes from the run that it starts from, and what the two schemas must have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema

EVERYTHING = {part: part for part in ("embeddings.", "net.", "teacher.")}
"""`Transfer.prefixes` of a run that takes over every weight of another one."""


@dataclass(frozen=True)
class SourceRun:
    """What a run has trained: of `init_from`'s, what a model is built on; of two, what one takes from the other."""

    schema: Schema
    """The schema that it was trained on, narrowed to what it used."""
    settings: Any
    """Of its model."""
    embeddings: EmbeddingSettings
    """Of its tables."""


@dataclass(frozen=True)
class Transfer:
    """The weights that a model takes from the run it starts from, declared in full: none is left out silently."""

    source: str
    """Name of the model that the source run must have trained."""
    prefixes: dict[str, str]
    """Prefix of names here to the prefix of the same weights there; all other weights here start fresh."""
    prunable: tuple[str, ...]
    """Prefixes of names there that may be left behind."""
    further: Callable[[SourceRun, SourceRun], dict[str, str]] = lambda here, there: {}
    """More of `prefixes`, those that depend on schemas and settings of the two runs; one without a dot at its end is a
    name."""
    required: bool = True
    """Whether the model needs a run to start from."""
    slices: bool = False
    """Whether it may also start from a run of the same model, with every weight of it: the next slice of time."""

    @property
    def teaches(self) -> bool:
        """Whether weights of the other run stay frozen, as those of a teacher."""
        return any(name.startswith("teacher.") for name in self.prefixes)


def check_same_features(taught: Schema, schema: Schema) -> None:
    """A teacher's tables read the student's batches: what it was taught must be in them, and mean the same.

    Raises:
        UserError: a feature of `taught` is missing in `schema`, or has other settings there.
    """
    here = {feature.column: feature for feature in schema.features}
    for feature in taught.features:
        found = here.get(feature.column, "no such feature")
        if found != feature:
            raise UserError(f"stage 1 was trained with feature {feature}, this schema has {found}: use the same schema")


def check_inputs(taught: Schema, schema: Schema, domain: str) -> None:
    """A student whose layers begin as its teacher's reads what these read: all but other domains' specific features.

    Raises:
        UserError: a feature of one of the two schemas alone makes its layers wider.
    """
    here, there = (
        {f.column for f in each.features if f.group != "specific" or f in each.features_of(domain)}
        for each in (schema, taught)
    )
    for column in sorted(here ^ there):
        stage = "stage 1" if column in there else "stage 2"
        raise UserError(
            f"model.warm_start: only {stage} reads feature '{column}', so the layers that stage 2 would begin with "
            f"have another width; leave it out there (without: [{column}]), or set warm_start: false"
        )


def check_common_features(taught: Schema, schema: Schema) -> None:
    """Features that two runs on different domains have in common have to mean the same in both.

    Raises:
        UserError: one has other settings, or its table is read by a sequence, or with weights, in one of the two only.
    """
    there = {feature.column: feature for feature in taught.features}
    collections = [{t.name: t.collection for t in s.tables()} for s in (taught, schema)]
    for feature in schema.features:
        found = there.get(feature.column)
        if found is None:
            continue
        if found.model_copy(update={"domains": feature.domains}) != feature:
            raise UserError(
                f"init_from was trained with feature {found}, this schema has {feature}: use the same schema"
            )
        kinds = [feature.has_table and each[feature.table_name] for each in collections]
        if kinds[0] != kinds[1]:
            what = "a sequence" if "sequences" in kinds else "a weighted bag"
            raise UserError(
                f"{what} reads the table of feature '{feature.column}' in one of the two runs only: give it "
                "a table of its own"
            )
