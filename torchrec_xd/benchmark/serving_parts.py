"""What the parts of an answer cost in one process: decoding, lookups, the net; and other ways to the same scores.

Shape legend: B candidates, R rows of the request side, L positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import orjson
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from torchrec_xd.benchmark.load import median
from torchrec_xd.benchmark.measure import Spread, alternate
from torchrec_xd.config import load_run
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.rows import Jagged
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Split
from torchrec_xd.serving.artifact import NET, REQUEST_OF
from torchrec_xd.serving.delta import TABLES
from torchrec_xd.serving.examples import example_body
from torchrec_xd.serving.requests import ScoreRequest
from torchrec_xd.serving.sides import side
from torchrec_xd.serving.tables import Tables
from torchrec_xd.serving.versions import ServedVersion
from torchrec_xd.training.inference import load_plain

CALLS = 50
"""Of a part, in one measurement."""
_SPLITS: tuple[Split, ...] = ("test", "valid", "train")


def bodies_of(version: ServedVersion, candidates: int, count: int) -> list[bytes]:
    """Bodies of `/score` from the sample: another user in each."""
    return [orjson.dumps(example_body(version, row, candidates)) for row in range(count)]


def parts_of(version: ServedVersion, body: bytes, run: Path | None, repeats: int) -> dict[str, Spread]:
    """CPU milliseconds of one thread: the median of some calls, several times, in turns."""
    scorer = version.scorer

    def read() -> ScoreRequest:
        return version.reader.read(orjson.loads(body), 10**6)[0]

    given = read()
    feeds = scorer.feeds(given.candidates, given.request, given.request_of_B)
    calls: dict[str, Callable[[], object]] = {
        "decoding, JSON to rows": read,
        "lookups": lambda: scorer.feeds(given.candidates, given.request, given.request_of_B),
        "net": lambda: scorer.run(feeds),
        "lookups and net": lambda: scorer.score(given.candidates, given.request, given.request_of_B),
    }
    inside = tables_inside(version, given)
    if inside is not None:
        calls["ONNX Runtime, tables in the graph"] = inside
    with ExitStack() as stack:
        if run is not None:
            calls["eager torch"] = _eager(run, len(given), version.artifact.manifest.domain, stack)
        return alternate({name: partial(_cpu_ms, call) for name, call in calls.items()}, repeats)


def _cpu_ms(call: Callable[[], object]) -> float:
    found = []
    for _ in range(CALLS):
        began = time.thread_time()
        call()
        found.append((time.thread_time() - began) * 1000)
    return median(found)


def tables_inside(version: ServedVersion, given: ScoreRequest) -> Callable[[], list[NDArray[Any]]] | None:
    """A call of the same net with its tables as constants of the graph, fed with ids; None where it reads bags."""
    manifest = version.artifact.manifest
    features = {feature.column: feature for feature in version.artifact.schema.features}
    if any(features[column].kind == "bag" for each in manifest.inputs for column in each.columns):
        return None
    proto = onnx.load(str(version.artifact.folder / NET))
    tables = Tables.open(version.artifact.folder / TABLES, manifest.tables)
    constants, nodes, looked_up = [], [], {}
    for name, entry in manifest.tables.items():
        rows = tables.rows(name, np.arange(entry.rows))
        # one row of zeros more, for positions without an id
        constants.append(numpy_helper.from_array(np.concatenate([rows, np.zeros_like(rows[:1])]), f"table/{name}"))
    for each in manifest.inputs:
        vectors = []
        for column, table in zip(each.columns, each.tables, strict=each.kind in ("pooled", "sequence")):
            ids, length = f"{each.name}/{column}/ids", features[column].length or 0
            looked_up[ids] = (column, manifest.tables[table].rows, length)
            vectors.append(each.name if len(each.columns) == 1 else f"{each.name}/{column}")
            nodes.append(helper.make_node("Gather", [f"table/{table}", ids], [vectors[-1]]))
        if len(vectors) > 1:
            nodes.append(helper.make_node("Concat", vectors, [each.name], axis=1))
    proto.graph.initializer.extend(constants)
    plain = {each.name for each in manifest.inputs if not each.tables} | {REQUEST_OF}
    kept = [each for each in proto.graph.input if each.name in plain]
    for name, (_, _, length) in looked_up.items():
        rows_of = name.partition("/")[0]
        size: list[str | int | None] = [rows_of, length] if length else [rows_of]
        kept.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, size))
    every = [*nodes, *proto.graph.node]
    for part, content in ((proto.graph.input, kept), (proto.graph.node, every)):
        del part[:]
        part.extend(content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = version.scorer.feeds(given.candidates, given.request, given.request_of_B)
    numbers = {name: feeds[name] for name in plain}
    ids_of = ids_by_column(version, given)

    def call() -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(
            list(version.scorer.outputs),
            {name: padded_ids(ids_of[column], *size) for name, (column, *size) in looked_up.items()} | numbers,
        )
        return found

    return call


def ids_by_column(version: ServedVersion, given: ScoreRequest) -> dict[str, Jagged]:
    """The ids of every feature with a table."""
    found: dict[str, Jagged] = {}
    for own, rows in (("request", given.request), ("candidate", given.candidates)):
        features = [f.column for f in version.artifact.schema.features if f.has_table and side(f) == own]
        found |= zip(features, rows.ids, strict=True)
    return found


def padded_ids(ids: Jagged, absent: int, length: int) -> NDArray[np.int64]:
    """Ids `[B]`, of a sequence `[B, L]`; `absent` where there is none."""
    if ids.offsets is None:
        return ids.values.astype(np.int64, copy=False)
    found_BL = np.full((len(ids.lengths), length or 1), absent, dtype=np.int64)
    found_BL[np.arange(found_BL.shape[1]) < ids.lengths[:, None]] = ids.values
    return found_BL if length else found_BL[:, 0]


def _eager(run: Path, rows: int, domain: str, stack: ExitStack) -> Callable[[], object]:
    """The run's model as plain modules, on as many rows of its data."""
    config = load_run(run)
    schema = config.schema_in_use
    split = next(split for split in _SPLITS if schema.domains[domain].paths(split))
    processes = stack.enter_context(process_group(config.trainer.model_copy(update={"threads": 1})))
    model, _ = load_plain(config, RunFolder(run), "best", processes)
    settings = config.loader.model_copy(update={"batch_size": rows})
    batch = next(Loader(schema, settings, split, ShardSpec(0, 1, config.seed)).batches())
    stack.enter_context(torch.inference_mode())
    return lambda: model(batch)
