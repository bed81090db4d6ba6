"""A request that a model answers, made of its artefact's sample: what a form is filled with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from torchrec_xd.serving.requests import PLACE

if TYPE_CHECKING:
    from torchrec_xd.serving.versions import ServedVersion

CANDIDATES = 5


def example_body(version: ServedVersion, row: int = 0, count: int | None = None) -> dict[str, dict[str, Any]]:
    """A body of `/score`: the user of a row of the sample, and the candidates of that row and the ones after it.

    Where a run has encoders, values are ones that are encoded to the sample's, or close to them.

    Args:
        version: whose sample.
        row: of the user; past the last row the sample begins again.
        count: of candidates. Default: 5, or as many as the sample has.
    """
    rows, _ = version.artifact.sample()
    count = min(CANDIDATES, len(rows)) if count is None else count
    rows = rows.take(np.arange(row, row + count) % len(rows)).combine_chunks()
    user = rows[version.reader.user][0].as_py() if version.reader.user in rows.column_names else "1"
    body: dict[str, dict[str, Any]] = {"request": {version.reader.user: user}, "candidates": {}}
    for column in version.reader.columns:
        values = version.reader.raw_values(column.name, rows[column.name].combine_chunks())
        place = PLACE[column.side]
        body[place][column.name] = values[0] if column.side == "request" else values
    return body
