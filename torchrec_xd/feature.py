"""One column that models read: its kind, its group, its table, how it becomes vectors. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from torchrec_xd.settings import Settings
from torchrec_xd.table_types import MAX_DIM, MAX_ROWS

Kind = Literal["id", "bag", "sequence", "dense", "vector"]
Group = Literal["user", "sequence", "shared", "specific", "context", "scene"]
MAX_LENGTH = 2**20
"""Ids of a sequence, numbers of a vector."""


class VocabularySettings(Settings):
    """A vocabulary that a run makes of its training rows, and that later runs go on with (`train --continue-from`)."""

    admit: PositiveInt = 1
    """How often a key must have been seen, in all slices so far, to get a row of its own; until then it is row 0."""
    expire: PositiveInt | None = None
    """A key that was not seen for so many days (slices, where runs have no `day`) loses its row, which is used again.
    Default: never."""
    block: PositiveInt = 1024
    """The table grows by so many rows at a time."""
    capacity: int | None = Field(default=None, gt=1, le=MAX_ROWS)
    """Rows that the table may have at most, row 0 included; more are an error. Default: no bound."""


class Feature(Settings):
    """One column that models read."""

    column: str
    """Name of the column in the files."""
    kind: Kind
    """`id`: one id; `bag`: list of ids, pooled; `sequence`: ordered list of ids, oldest first; `dense`: a number;
    `vector`: list of `length` numbers, float16, float32 or float64 in the files."""
    group: Group
    """What models do with it: `user`, `shared` (of items in all domains), `specific` (of one domain), `sequence`,
    `context`, `scene` (read by EXIT's selector)."""
    domains: tuple[str, ...] | None = None
    """Domains whose files have the column. Default: all. A `specific` feature names exactly one."""
    table: str | None = None
    """Embedding table; features that name the same one share it, with equal `rows`, `dim`, `hash` and `vocabulary`.
    Default: the column's own table."""
    rows: int | None = Field(default=None, gt=0, le=MAX_ROWS)
    """Rows of the table; ids lie in [0, rows). A schema file may name a vocabulary (`encoders/item.parquet`, below
    `root`) instead: its rows and one more. With a `vocabulary` of its own: the least there are; runs write down how
    many there are."""
    vocabulary: VocabularySettings | None = None
    """The files hold raw keys, integers or strings, and runs give them rows; a key that training has not seen reads row
    0. `{}` takes the defaults."""
    dim: int | None = Field(default=None, gt=0, le=MAX_DIM)
    """Width of the embedding, of a table a multiple of 4. Default: the schema's `dim`."""
    pooling: Literal["sum", "mean"] = "sum"
    """How a bag becomes one vector."""
    weights: str | None = None
    """Column with the weights of a bag's ids, a list of numbers of the same length; the feature's own column, where
    that holds pairs of id and weight (structs of two, or a map). The vectors are multiplied by them and summed."""
    hash: Literal["none", "drop", "mod", "xxhash"] = "none"
    """`none`: an id outside [0, rows) is an error; `drop`: it is left out, like a null; `mod`: id modulo rows;
    `xxhash`: hashed; the ids of a table are all strings or all integers."""
    length: int | None = Field(default=None, gt=0, le=MAX_LENGTH)
    """A sequence keeps its last `length` ids; a vector has exactly `length` numbers."""
    events: str | None = None
    """Of a sequence: name of the events that it is a column of, next to others (item, category, action). Models read
    the columns side by side as one sequence of this name. They have the same `length` and `domains`; every row has
    equally many ids in each, and one that is null or left out (`hash: drop`) is row 0, so that positions stay."""
    indicator: bool = False
    """Of a vector: a learned vector is added where the value is null. Default: null reads as zeros."""
    mean: FiniteFloat | None = None
    """Dense: subtracted from the number, after `clip` and `log1p`."""
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Dense: the number is divided by it, last of all."""
    log1p: bool = False
    """Dense: ln(1 + number), negative numbers mirrored; after `clip`, before `mean` and `std`."""
    clip: tuple[FiniteFloat, FiniteFloat] | None = None
    """Dense: the least and the greatest number, before anything else."""
    missing: FiniteFloat | None = None
    """Dense: what null stands for, at the scale of the files. Default: 0 at the scale that models read."""

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if not self.has_table and (self.table or self.rows or self.hash != "none" or self.vocabulary):
            what = "dense" if self.kind == "dense" else "a vector"
            nor = ", nor a vocabulary" if self.vocabulary else ""
            raise ValueError(f"feature '{self.column}' is {what}: it has no table, no rows and no hash{nor}")
        if self.vocabulary is not None and self.hash != "none":
            raise ValueError(
                f"feature '{self.column}': a vocabulary gives keys their rows, and 'hash: {self.hash}' does too: leave "
                "one of them out"
            )
        if self.kind != "bag" and self.pooling != "sum":
            raise ValueError(f"feature '{self.column}': 'pooling' belongs to bags only")
        if self.weights is not None and self.kind != "bag":
            raise ValueError(f"feature '{self.column}': 'weights' belongs to bags only")
        if self.weights is not None and self.pooling == "mean":
            raise ValueError(
                f"feature '{self.column}': weighted ids are summed; a mean would divide by their number, not by the "
                "sum of the weights: leave 'pooling' out, and divide the weights of each row by their sum"
            )
        if self.has_table and self.rows is None and self.vocabulary is None:
            raise ValueError(f"feature '{self.column}' needs 'rows', the number of distinct ids, or a 'vocabulary'")
        if (self.kind in ("sequence", "vector")) != (self.length is not None):
            raise ValueError(
                f"feature '{self.column}': 'length' belongs to every sequence and every vector, and to these only"
            )
        if self.events is not None and self.kind != "sequence":
            raise ValueError(f"feature '{self.column}': 'events' belongs to sequences only")
        if self.indicator and self.kind != "vector":
            raise ValueError(f"feature '{self.column}': 'indicator' belongs to vectors only")
        if (self.kind == "sequence") != (self.group == "sequence"):
            raise ValueError(f"feature '{self.column}': kind 'sequence' and group 'sequence' go together")
        if self.domains == ():
            raise ValueError(f"feature '{self.column}' is in no domain: name some, or leave 'domains' out for all")
        if self.group == "specific" and (self.domains is None or len(self.domains) != 1):
            raise ValueError(f"feature '{self.column}' is specific: name its one domain, domains: [NAME]")
        return self

    @model_validator(mode="after")
    def _check_dense(self) -> Feature:
        scaled = [key for key in ("mean", "std", "log1p", "clip", "missing") if getattr(self, key) not in (None, False)]
        if self.kind != "dense" and scaled:
            raise ValueError(f"feature '{self.column}': '{scaled[0]}' belongs to dense features only")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"feature '{self.column}': 'clip' is [LOWEST, GREATEST], and {list(self.clip)} is not")
        return self

    @property
    def has_table(self) -> bool:
        """Whether its values are ids that a table is looked up with."""
        return self.kind not in ("dense", "vector")

    @property
    def width(self) -> int:
        """Of a vector: its numbers in a batch, with a last one that is 1 for null where there is an `indicator`."""
        return (self.length or 0) + self.indicator

    @property
    def table_name(self) -> str:
        """Name of the embedding table, prefixed so that it can never collide with a method of nn.ModuleDict."""
        return f"t_{self.table or self.column}"
