"""Rows to scores: a gather from memory-mapped tables, then the net in ONNX Runtime.

Shape legend: B candidates, R rows of the request side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from torchrec_xd.data.rows import Jagged, Rows
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema
from torchrec_xd.serving.artifact import NET, REQUEST_OF, TABLES, Artifact, NetInput
from torchrec_xd.serving.sides import Side, side
from torchrec_xd.serving.tables import Tables


class Scorer:
    """Rows to outputs: a gather from memory-mapped tables, then ONNX Runtime. Safe to call from several threads.

    Args:
        artifact: what was exported.
        threads: of a call.
        tables: in place of the artefact's own.

    Raises:
        UserError: the net or the tables cannot be read, or do not fit the manifest.
    """

    def __init__(self, artifact: Artifact, threads: int = 1, tables: Tables | None = None) -> None:
        manifest = artifact.manifest
        self.outputs: tuple[str, ...] = manifest.outputs
        """Tasks, then auxiliary scores."""
        self._tables = Tables.open(artifact.folder / TABLES, manifest.tables) if tables is None else tables
        self._session = _session(artifact, threads)
        given = {each.name for each in self._session.get_inputs()}
        expected = {REQUEST_OF, *(each.name for each in manifest.inputs)}
        if given != expected:
            differ = ", ".join(sorted(given ^ expected))
            raise UserError(
                f"{artifact.folder / NET}: its inputs are not those of the manifest ({differ}); export again"
            )
        places = _Places(artifact.schema)
        self._inputs = {each.name: (places.side_of(each), self._read(each, places)) for each in manifest.inputs}
        self._gathers = self._all_gathers(manifest.inputs, places)

    def score(
        self, candidates: Rows, request: Rows | None = None, request_of_B: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Outputs by name, `[B]` each, not truncated.

        Args:
            candidates: B rows; without `request` with all features.
            request: R rows with the features of the request side.
            request_of_B: each candidate's row of `request`. Default: R is 1.
        """
        if not len(candidates):
            return {name: np.zeros(0, dtype=np.float32) for name in self.outputs}
        return self.run(self.feeds(candidates, request, request_of_B))

    def feeds(
        self, candidates: Rows, request: Rows | None = None, request_of_B: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """What the net reads of rows, by input; arguments of `score`, at least one candidate."""
        count = len(candidates)
        if request is None:
            request, request_of_B = candidates, np.arange(count)
        elif request_of_B is None:
            assert len(request) == 1
            request_of_B = np.zeros(count, dtype=np.int64)
        sides: dict[Side, Rows] = {"request": request, "candidate": candidates}
        feeds: dict[str, NDArray[Any]] = {REQUEST_OF: request_of_B}
        for gather in self._gathers:
            feeds |= gather.vectors(sides[gather.side])
        for name, (own, read) in self._inputs.items():
            if name not in feeds:
                feeds[name] = read(sides[own])
        return feeds

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name, of what `feeds` made."""
        return dict(zip(self.outputs, self._session.run(list(self.outputs), feeds), strict=True))

    def _all_gathers(self, inputs: Sequence[NetInput], places: _Places) -> list[_Gather]:
        """Of each side, the ids whose tables lie in one stack."""
        found = []
        for stack in self._tables.stacks:
            for own in ("request", "candidate"):
                mine = [i for i in inputs if i.kind == "id" and i.table in stack.first and places.side_of(i) == own]
                if mine:
                    at = [places.of(places.features[i.column], "ids") for i in mine]
                    first = [stack.first[i.table or ""] for i in mine]
                    found.append(_Gather(own, stack.rows_ND, tuple(i.name for i in mine), tuple(at), np.array(first)))
        return found

    def _read(self, given: NetInput, places: _Places) -> Callable[[Rows], NDArray[Any]]:
        """What makes an input of rows that hold all features, or those of its side."""
        feature, tables, name = places.features[given.column], self._tables, given.table or ""
        if given.kind == "dense":
            dense = places.of(feature, "dense")
            return lambda rows: rows.dense_BN[:, dense(rows.dense_BN.shape[1])]
        if given.kind == "vector":
            vector = places.of(feature, "vectors")
            return lambda rows: rows.vectors[vector(len(rows.vectors))].astype(np.float32, copy=False)
        at = places.of(feature, "ids")

        def ids(rows: Rows) -> Jagged:
            return rows.ids[at(len(rows.ids))]

        if given.kind == "length":
            return lambda rows: ids(rows).lengths.astype(np.int32)
        if given.kind == "sequence":
            length = feature.length or 0
            return lambda rows: tables.padded(name, ids(rows), length)
        return lambda rows: tables.pooled(name, ids(rows))


@dataclass(frozen=True)
class _Gather:
    """Inputs of one side whose vectors are gathered at once."""

    side: Side
    rows_ND: NDArray[np.float32]
    names: tuple[str, ...]
    places: tuple[Callable[[int], int], ...]
    """Of their ids."""
    first_F: NDArray[np.int64]
    """First row of each one's table."""

    def vectors(self, rows: Rows) -> dict[str, NDArray[np.float32]]:
        """`[B, D]` by input, of those that have an id in every row."""
        count = len(rows.ids)
        ids = [rows.ids[place(count)] for place in self.places]
        here = [i for i, each in enumerate(ids) if each.offsets is None]
        if not here:
            return {}
        id_FB = np.stack([ids[i].values for i in here], dtype=np.int64) + self.first_F[here, None]
        vector_FBD = np.take(self.rows_ND, id_FB, axis=0)
        return {self.names[i]: vector_BD for i, vector_BD in zip(here, vector_FBD, strict=True)}


class _Places:
    """Where each feature stands in rows of all features, and in those of its side alone."""

    def __init__(self, schema: Schema) -> None:
        self.features = {feature.column: feature for feature in schema.features}

    def side_of(self, given: NetInput) -> Side:
        return side(self.features[given.column])

    def of(self, feature: Feature, part: str) -> Callable[[int], int]:
        """The place of a feature among as many of the same part."""
        every = [f for f in self.features.values() if _part(f) == part]
        own = [f for f in every if side(f) == side(feature)]
        places = {len(own): own.index(feature), len(every): every.index(feature)}
        return places.__getitem__


def _part(feature: Feature) -> str:
    return {"dense": "dense", "vector": "vectors"}.get(feature.kind, "ids")


def _session(artifact: Artifact, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = artifact.folder / NET
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors have no common class
        raise UserError(f"{path}: ONNX Runtime cannot load it ({error}); export again") from None
