"""Rows to scores: a gather from memory-mapped tables, then the net in ONNX Runtime.

Shape legend: B candidates, R rows of the request side.
"""

from __future__ import annotations

from collections.abc import Callable
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
        self._inputs = [(each.name, places.side_of(each), self._read(each, places)) for each in manifest.inputs]

    def score(
        self, candidates: Rows, request: Rows | None = None, request_of_B: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Outputs by name, `[B]` each, not truncated.

        Args:
            candidates: B rows; without `request` with all features.
            request: R rows with the features of the request side.
            request_of_B: each candidate's row of `request`. Default: R is 1.
        """
        count = len(candidates)
        if not count:
            return {name: np.zeros(0, dtype=np.float32) for name in self.outputs}
        if request is None:
            request, request_of_B = candidates, np.arange(count)
        elif request_of_B is None:
            assert len(request) == 1
            request_of_B = np.zeros(count, dtype=np.int64)
        sides = {"request": request, "candidate": candidates}
        feeds: dict[str, NDArray[Any]] = {name: read(sides[own]) for name, own, read in self._inputs}
        feeds[REQUEST_OF] = request_of_B
        return dict(zip(self.outputs, self._session.run(list(self.outputs), feeds), strict=True))

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
