"""Rows to scores: a gather from memory-mapped tables, then the net in ONNX Runtime.

Shape legend: B candidates, R rows of the request side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from torchrec_xd.data.rows import Jagged, Rows
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema
from torchrec_xd.serving.artifact import NET, REQUEST_OF, Artifact, NetInput
from torchrec_xd.serving.delta import TABLES
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
        """Tasks, then auxiliary scores, then gates."""
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
        return feeds | {name: read(sides[own]) for name, (own, read) in self._inputs.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name, of what `feeds` made."""
        return dict(zip(self.outputs, self._session.run(list(self.outputs), feeds), strict=True))

    def _read(self, given: NetInput, places: _Places) -> Callable[[Rows], NDArray[Any]]:
        """What makes an input of rows that hold all features, or those of its side."""
        features, tables = [places.features[column] for column in given.columns], self._tables
        if given.kind == "pooled":
            return self._pooled(given, [places.of(feature, "ids") for feature in features])
        if given.kind == "dense":
            numbers = [places.of(feature, "dense") for feature in features]
            return lambda rows: rows.dense_BN[:, [place(rows.dense_BN.shape[1]) for place in numbers]]
        feature = features[0]
        if given.kind == "vector":
            vector = places.of(feature, "vectors")
            return lambda rows: rows.vectors[vector(len(rows.vectors))].astype(np.float32, copy=False)
        at = places.of(feature, "ids")

        def ids(rows: Rows) -> Jagged:
            return rows.ids[at(len(rows.ids))]

        if given.kind == "length":
            return lambda rows: ids(rows).lengths.astype(np.int32)
        length, table = feature.length or 0, given.tables[0]
        return lambda rows: tables.padded(table, ids(rows), length)

    def _pooled(self, given: NetInput, places: Sequence[Callable[[int], int]]) -> Callable[[Rows], NDArray[Any]]:
        """What makes an input of several vectors; with one gather where all tables lie in one stack."""
        tables = self._tables
        stack = next((each for each in tables.stacks if all(name in each.first for name in given.tables)), None)
        first_F = np.array([] if stack is None else [stack.first[name] for name in given.tables], dtype=np.int64)

        def vectors(rows: Rows) -> NDArray[np.float32]:
            count = len(rows.ids)
            ids = [rows.ids[place(count)] for place in places]
            if stack is None or any(each.offsets is not None or each.weights is not None for each in ids):
                pooled = [tables.pooled(name, each) for name, each in zip(given.tables, ids, strict=True)]
                return np.concatenate(pooled, axis=1)
            id_BF = np.stack([each.values for each in ids], axis=1, dtype=np.int64) + first_F
            return np.take(stack.rows_ND, id_BF, axis=0).reshape(len(id_BF), -1)

        return vectors


class _Places:
    """Where each feature stands in rows of all features, and in those of its side alone."""

    def __init__(self, schema: Schema) -> None:
        self.features = {feature.column: feature for feature in schema.features}

    def side_of(self, given: NetInput) -> Side:
        return side(self.features[given.columns[0]])

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
