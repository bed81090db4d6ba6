"""A request that a model answers, made of its artefact's sample: what a form is filled with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchrec_xd.serving.requests import PLACE

if TYPE_CHECKING:
    from torchrec_xd.serving.versions import ServedVersion

CANDIDATES = 5


def example_body(version: ServedVersion) -> dict[str, dict[str, Any]]:
    """A body of `/score`: the first row's user, and the candidates of the first rows.

    Where a run has encoders, values are ones that are encoded to the sample's, or close to them.
    """
    rows, _ = version.artifact.sample()
    rows = rows.slice(0, CANDIDATES).combine_chunks()
    user = rows[version.reader.user][0].as_py() if version.reader.user in rows.column_names else "1"
    body: dict[str, dict[str, Any]] = {"request": {version.reader.user: user}, "candidates": {}}
    for column in version.reader.columns:
        values = version.reader.raw_values(column.name, rows[column.name].combine_chunks())
        place = PLACE[column.side]
        body[place][column.name] = values[0] if column.side == "request" else values
    return body
