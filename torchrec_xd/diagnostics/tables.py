"""Which rows of the embedding tables the domains look up, and which of these they have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from torchrec.sparse.jagged_tensor import JaggedTensor

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.diagnostic import Columns, Diagnostic, Part
from torchrec_xd.diagnostics.distribution import laid_out, text
from torchrec_xd.evaluation.row_quantities import Array
from torchrec_xd.outputs import Output
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Schema


class TouchedTables(Diagnostic):
    """Distinct rows of every table that each domain's rows look up; memory grows with these, not with the tables."""

    name = "tables"
    title = "Tables touched by several domains"
    reading = (
        "Embeddings carry knowledge over only through rows that several domains look up: where hardly any are shared, "
        "nothing can pass through that table, whatever the model."
    )

    def __init__(self, schema: Schema) -> None:
        self.domains = tuple(schema.domains)
        self.sizes = {table.name: table.rows for table in schema.tables()}
        self.table_of = {feature.column: table.name for table in schema.tables() for feature in table.features}
        self.touched = {name: [np.zeros(0, dtype=np.int64) for _ in self.domains] for name in self.sizes}

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add the ids of a batch."""
        for ids in (batch.bags, batch.weighted_bags, batch.sequences):
            for column, jagged in ids.to_dict().items():
                self._add(self.touched[self.table_of[column]], jagged, batch)

    def _add(self, touched: list[Array], ids: JaggedTensor, batch: Batch) -> None:
        values, offsets = ids.values().cpu().numpy(), ids.offsets().cpu().numpy()
        for i in range(len(self.domains)):
            own = batch.rows(i)
            touched[i] = np.union1d(touched[i], values[offsets[own.start] : offsets[own.stop]])

    def values(self) -> dict[str, Any]:
        """`tables`: name, rows, by domain touched and share of all rows, then those of any and of several domains."""
        return {"tables": [self._of(name) for name in self.sizes]}

    def _of(self, name: str) -> dict[str, Any]:
        size, touched = self.sizes[name], dict(zip(self.domains, self.touched[name], strict=True))
        _, domains_of_row = np.unique(np.concatenate(list(touched.values())), return_counts=True)
        shared = int((domains_of_row > 1).sum())
        return {
            "table": name.removeprefix("t_"),
            "rows": size,
            "domains": {domain: {"touched": len(ids), "share": len(ids) / size} for domain, ids in touched.items()},
            "touched": len(domains_of_row),
            "shared": shared,
            "shared_of_touched": shared / len(domains_of_row) if len(domains_of_row) else None,
        }

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """A bar per table, and all counts."""
        tables = values["tables"]
        lines = [
            [
                table["table"],
                f"{table['rows']:,}",
                *(f"{d['touched']:,} ({d['share']:.1%})" for d in table["domains"].values()),
                f"{table['shared']:,}",
                text(table["shared_of_touched"], ".1%"),
            ]
            for table in tables
        ]
        bars = go.Bar(
            name="by several domains", x=[t["table"] for t in tables], y=[t["shared_of_touched"] for t in tables]
        )
        header = ["table", "rows", *(f"touched by {d}" for d in self.domains), "by several", "of all touched"]
        return [laid_out(go.Figure(bars), "table", "share of touched rows"), Grid(header, lines)]
