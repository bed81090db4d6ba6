"""What a data set is before it is written: per domain, the exposures and how they become rows that models read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ibis
from ibis import _
from ibis.expr.types import Table

from torchrec_xd.datasets.pipeline.vocabulary import Vocabularies

SPLITS = ("train", "valid", "test")
ORDER = ("_cluster", "_within")
"""Hashes that order the rows of a file; features carry them along, and they are not written."""


@dataclass(frozen=True)
class SplitDays:
    """Rows are split by the day on which their exposure begins, counted from 2017-01-01."""

    valid: int
    """First day of `valid`; everything learnt offline (vocabularies) comes from before."""
    test: int
    """First day of `test`."""

    def mark(self, exposures: Table) -> Table:
        """`exposures` plus a column `split`: `train`, `valid` or `test`."""
        split = ibis.cases((_.day < self.valid, "train"), (_.day < self.test, "valid"), else_="test")
        return exposures.mutate(split=split)


@dataclass(frozen=True)
class DomainRows:
    """One domain of a data set."""

    exposures: Table
    """Rows with a column `split`."""
    label: str
    key: list[str]
    """Integer columns of the exposures that name a row."""
    cluster: list[str]
    """Those of them whose rows lie together in a file; clusters lie in pseudo-random order."""
    features: Callable[[Table], Table]
    """Some exposures (plus `ORDER`) to the rows that are written (plus `ORDER`)."""


@dataclass(frozen=True)
class LabelReport:
    """Which labels of a domain are reported on, and by which of its columns."""

    domain: str
    acted: str
    """Column of `y_t`."""
    sources: Mapping[str, tuple[str, str]]
    """Source -> columns of `y_s` and `c`."""
    by: tuple[tuple[str, str], ...]
    """Scenes and groups: their headings and columns."""


@dataclass(frozen=True)
class DataSet:
    """All that `prepare` writes, still as expressions."""

    domains: Mapping[str, DomainRows]
    vocabularies: Vocabularies
    sampling: Mapping[str, float]
    """What was sampled -> the share that was kept."""
    notes: tuple[str, ...]
    """What a reader of results should know."""
    report: LabelReport | None = None
    """Of interest combination labels, where the data set has some."""
