"""EXIT: do target and sources have items in common, by the ids that their rows look up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import text
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.outputs import Output
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema

FEW = 0.1
"""Share of the target's rows whose item the source has, below which its interests say next to nothing of the target."""
KNOWN = 0.5
"""Share of a source's rows that further rows would add no item to, below which too few were read to say so."""


class SharedItems(Diagnostic):
    """Per source with rows of its own: the share of the target's rows whose item occurs in the source's rows.

    An item is the value of the id feature of group shared that has the largest table.

    Args:
        schema: of the model.
        target: the target domain.
        sources: name of a source to the domain of its rows.
    """

    name = "shared_items"
    title = "Items that target and sources share"
    reading = (
        "The share of the target's rows whose item occurs among the source's rows that were read; of these, how many "
        "show an item that others show too (1 less the items seen once, over rows): low, more batches find more."
    )

    def __init__(self, schema: Schema, target: str, sources: Mapping[str, str]) -> None:
        places = {domain: i for i, domain in enumerate(schema.domains)}
        ids = [f for f in schema.features if (f.group, f.kind) == ("shared", "id")]
        self.column = max(ids, key=lambda f: f.rows or 0).column if ids else None
        self.target, self.sources = places[target], {name: places[domain] for name, domain in sources.items()}
        self.items: dict[int, list[Array]] = {place: [] for place in (self.target, *self.sources.values())}

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add the ids of a batch."""
        if self.column is None:
            return
        # An id that shares its table with a sequence is looked up with the sequences.
        ids = {**batch.bags.to_dict(), **batch.sequences.to_dict()}[self.column]
        values, offsets = ids.values().cpu().numpy(), ids.offsets().cpu().numpy()
        for place, found in self.items.items():
            own = batch.rows(place)
            found.append(values[offsets[own.start] : offsets[own.stop]])

    def values(self) -> dict[str, Any]:
        """`column`; by name `sources`: `rows` of both, `share`, and `known` of the source's rows; null without rows."""
        items = {place: np.concatenate(found) for place, found in self.items.items() if found}
        return {
            "column": self.column,
            "sources": {name: self._of(items, place) for name, place in self.sources.items()},
        }

    def _of(self, items: Mapping[int, Array], place: int) -> dict[str, Any]:
        none = np.zeros(0, dtype=np.int64)
        target_R, source_R = items.get(self.target, none), items.get(place, none)
        found = {"rows": len(target_R), "source_rows": len(source_R)}
        if not len(target_R) or not len(source_R):
            return {**found, "share": None, "known": None}
        once = int((np.unique(source_R, return_counts=True)[1] == 1).sum())
        return {**found, "share": float(np.isin(target_R, source_R).mean()), "known": 1 - once / len(source_R)}

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """Sources that share next to no item with the target."""
        return [
            Finding(
                "premise_fails",
                f"'{name}': {source['share']:.1%} of {source['rows']:,} rows of the target show an item (feature "
                f"'{values['column']}') that the source's {source['source_rows']:,} rows have too, less than "
                f"{FEW:.0%}: an interest there is one in other items",
                "look whether ids of items mean the same in both; if items are others, EXIT has no premise beyond "
                "their categories: take a shared bottom, STAR or MKT",
            )
            for name, source in values["sources"].items()
            if source["share"] is not None and source["share"] < FEW and source["known"] >= KNOWN
        ]

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A line per source."""
        lines = [
            [name, f"{source['rows']:,}", f"{source['source_rows']:,}", text(source["share"]), text(source["known"])]
            for name, source in values["sources"].items()
        ]
        return [Grid(["source", "target rows", "source rows", "share of target rows", "known source rows"], lines)]
