"""Artefacts of a tiny model, written by hand without torch: any bias is another version."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from torchrec_xd.prepare.encoders import sha256
from torchrec_xd.serving.artifact import CHANGES, FORMAT, Artifact
from torchrec_xd.serving.delta import TABLES as TABLES_FILE
from torchrec_xd.serving.delta import VOCABULARIES

OUTPUTS = ("click@goods", "click@goods/part")
LENGTH, DIM, ROWS = 3, 4, 50
SCHEMA: dict[str, Any] = {
    "name": "shop",
    "user": "user",
    "dim": DIM,
    "domains": {"goods": {"role": "target", "train": "train.parquet"}},
    "tasks": [{"label": "click", "domain": "goods"}],
    "features": [
        {"column": "user", "kind": "id", "group": "user", "rows": ROWS},
        {"column": "hist", "kind": "sequence", "group": "sequence", "table": "item", "rows": ROWS, "length": LENGTH},
        {"column": "item", "kind": "id", "group": "specific", "domains": ["goods"], "rows": ROWS},
        {"column": "price", "kind": "dense", "group": "shared"},
    ],
}
TABLES = {
    name: np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float32)
    for seed, name in enumerate(("t_user", "t_item"))
}
_INPUTS = [
    {"name": "request/user", "columns": ["user"], "kind": "pooled", "tables": ["t_user"]},
    {"name": "request/hist", "columns": ["hist"], "kind": "sequence", "tables": ["t_item"]},
    {"name": "candidate/item", "columns": ["item"], "kind": "pooled", "tables": ["t_item"]},
    {"name": "candidate/price", "columns": ["price"], "kind": "dense"},
]


def expected(user: int, hist: list[int], item: list[int], price: list[float], bias: float) -> dict[str, Any]:
    """What the net computes, in NumPy."""
    users, items = TABLES["t_user"], TABLES["t_item"]
    once = users[user].sum() + items[hist[-LENGTH:]].sum()
    part = items[item].sum(axis=1) + once + 0.1 * np.array(price)
    return {OUTPUTS[0]: 1 / (1 + np.exp(-(part + bias))), OUTPUTS[1]: part}


def write_artifact(out: Path, version: int, bias: float = 0.0, *, current: bool = True, lie: float = 0.0) -> Path:
    """A version below `out`; `lie` is added to the scores of its sample."""
    folder = out / "versions" / str(version)
    folder.mkdir(parents=True)
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    onnx.save(_net(bias), str(folder / "net.onnx"))
    save_file(TABLES, folder / "tables.safetensors")
    pq.write_table(_sample(bias, lie), folder / "sample.parquet")
    table = {"rows": ROWS, "dim": DIM, "dtype": "fp32"}
    manifest = {
        "format": FORMAT,
        "written_by": "0",
        "model": "tiny",
        "run": "runs/tiny",
        "checkpoint": "best",
        "domain": "goods",
        "fingerprint": "0",
        "tasks": ["click@goods"],
        "outputs": OUTPUTS,
        "inputs": _INPUTS,
        "tables": dict.fromkeys(TABLES, table),
        "tables_dtype": "fp32",
        "tolerance": 1e-6,
        "difference": 0.0,
        "files": {path.name: sha256(path) for path in folder.iterdir()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "READY").touch()
    if current:
        set_current(out, version)
    return folder


def set_current(out: Path, version: int) -> None:
    """Let `current.json` name a version, in one step."""
    partial = out / ".current.json"
    partial.write_text(json.dumps({"version": version}))
    os.replace(partial, out / "current.json")


def copied(version: Artifact, out: Path) -> Path:
    """The folder of a version that was copied as changes to where the one is that it is based on.

    Args:
        version: exported with `since`.
        out: another `--out`; that one is copied there as well.
    """
    folder, since = version.folder, str(version.manifest.since)
    shutil.copytree(folder.parent / since, out / "versions" / since, dirs_exist_ok=True)
    names = (folder / CHANGES).read_text().splitlines()
    assert {TABLES_FILE, VOCABULARIES}.isdisjoint(names)
    for name in names:
        path = out / "versions" / folder.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, path)
    set_current(out, version.version)
    return out / "versions" / folder.name


def _sample(bias: float, lie: float) -> pa.Table:
    rows = {"user": [7] * 8, "hist": [[1, 2, 3]] * 8, "item": list(range(8)), "price": [0.5 * i for i in range(8)]}
    scores = expected(7, [1, 2, 3], rows["item"], rows["price"], bias)
    told = {f"score_{name}": (scores[name] + lie).astype(np.float32) for name in OUTPUTS}
    return pa.table({**rows, **told})


def _net(bias: float) -> onnx.ModelProto:
    def tensor(name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def constant(name: str, kind: int, values: list[Any]) -> Any:
        return helper.make_tensor(name, kind, [len(values)], values)

    node = helper.make_node
    nodes = [
        node("ReduceSum", ["request/user", "last"], ["user"], keepdims=0),
        node("ReduceSum", ["request/hist", "both"], ["hist"], keepdims=0),
        node("Add", ["user", "hist"], ["once"]),
        node("Gather", ["once", "request_of"], ["each"]),
        node("ReduceSum", ["candidate/item", "last"], ["item"], keepdims=0),
        node("ReduceSum", ["candidate/price", "last"], ["number"], keepdims=0),
        node("Mul", ["number", "tenth"], ["price"]),
        node("Sum", ["each", "item", "price"], [OUTPUTS[1]]),
        node("Add", [OUTPUTS[1], "bias"], ["logit"]),
        node("Sigmoid", ["logit"], [OUTPUTS[0]]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            tensor("request/user", "R", DIM),
            tensor("request/hist", "R", LENGTH, DIM),
            tensor("candidate/item", "B", DIM),
            tensor("candidate/price", "B", 1),
            helper.make_tensor_value_info("request_of", TensorProto.INT64, ["B"]),
        ],
        [tensor(name, "B") for name in OUTPUTS],
        [
            constant("last", TensorProto.INT64, [1]),
            constant("both", TensorProto.INT64, [1, 2]),
            constant("tenth", TensorProto.FLOAT, [0.1]),
            constant("bias", TensorProto.FLOAT, [bias]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
