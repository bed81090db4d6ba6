"""Golden losses: what every model computes in its first steps, to prove that a change of structure changes no number.

    python -m tools.golden write FILE               # record this checkout
    python -m tools.golden compare OTHER_CHECKOUT   # train in both checkouts, on this machine: every bit must agree

Each case trains a few steps on small made-up rows, on one thread. Recorded are the loss of every step, a norm of every
weight, and a hash of all weights and optimizer states. Between machines the hash differs; losses and norms agree to the
tolerance of tests/test_golden.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from torchrec_xd.checkpoint.reading import Reader, load
from torchrec_xd.config import RunConfig
from torchrec_xd.datasets import prepare_world
from torchrec_xd.settings import load_yaml, validate
from torchrec_xd.training.train_run import train

Record = dict[str, Any]

SIZES = {
    "target_rows": 1_000,
    "source_ratio": 2.0,
    "valid_rows": 100,
    "test_rows": 200,
    "users": 200,
    "items": 100,
    "workers": 1,
}
NUMBERS = ("segment", "target_attribute_4", "source_attribute_4")
JOINT = {"aligned_dim": 8, "tower_widths": [8], "domain_weight": {"target": 2.0}}
EXIT = {
    "name": "exit",
    "target": "click@target",
    "sources": {"source": {"wanted": "wanted@target", "fit": "fit@target"}},
    "widths": [16, 8],
    "scene_widths": [8],
}


@dataclass(frozen=True)
class Case:
    """A model and the data it is trained on."""

    model: dict[str, Any]
    preset: str = "helps"
    domain: str | None = None
    """The only domain that it reads; all where None."""
    tasks: tuple[str, ...] | None = None
    init_from: str | None = None
    """The case whose run it starts from."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Further keys of the run config."""


CASES = {
    "mkt_pretrain": Case({"name": "mkt_pretrain", "expert_widths": [16, 8], "dropout": 0.2, **JOINT}),
    "mkt_pretrain_without_hfa": Case({"name": "mkt_pretrain", "expert_widths": [16, 8], "hfa": False, **JOINT}),
    "mkt_pretrain_two_levels": Case(
        {"name": "mkt_pretrain", "expert_widths": [16, 8], "levels": 2, "gamma": 0.0, **JOINT}
    ),
    "mkt_finetune": Case(
        {"name": "mkt_finetune", "widths": [16], "head_widths": [8]}, domain="target", init_from="mkt_pretrain"
    ),
    "mkt_finetune_dynamic": Case(
        {"name": "mkt_finetune", "widths": [16], "head_widths": [8], "gates": "dynamic"},
        domain="target",
        init_from="mkt_pretrain",
    ),
    "exit_whole": Case(EXIT, "homepage", domain="target", tasks=("click@target", "wanted@target", "fit@target")),
    "exit_transfer": Case(
        {**EXIT, "transfer_on": "transfer", "dropout": 0.2},
        "homepage",
        domain="target",
        tasks=("click@target", "wanted@target", "fit@target"),
    ),
    "exit_without_ssn_and_icl": Case(
        {**EXIT, "ssn": False, "icl": False},
        "homepage",
        domain="target",
        tasks=("click@target", "wanted@target", "fit@target"),
    ),
    "single": Case({"name": "single", "widths": [16, 8]}, domain="target"),
    "single_source": Case({"name": "single", "widths": [16, 8], "aligned_dim": 8}, domain="source"),
    "single_finetuned": Case(
        {"name": "single", "widths": [16, 8], "aligned_dim": 8}, domain="target", init_from="single_source"
    ),
    "shared_bottom": Case({"name": "shared_bottom", "widths": [16], **JOINT}),
    "mmoe": Case({"name": "mmoe", "expert_widths": [16], **JOINT}),
    "ple": Case({"name": "ple", "expert_widths": [16], "levels": 2, **JOINT}),
    "star": Case({"name": "star", "widths": [16], **JOINT}),
    "conet": Case({"name": "conet", "widths": [16, 8], **JOINT}),
    "minet": Case(
        {"name": "minet", "widths": [16], "sequences": {"target": ["hist_target"], "source": ["hist_source"]}, **JOINT}
    ),
    "ctnet": Case({"name": "ctnet", "widths": [16, 8]}, domain="target", init_from="single_source"),
    "fibinet": Case({"name": "fibinet", "widths": [16]}, domain="target"),
    "fp16_tables_and_bf16": Case(
        {"name": "shared_bottom", "widths": [16], "dropout": 0.2, **JOINT},
        changes=(("embeddings", {"dtype": "fp16"}), ("trainer", {"precision": "bf16", "log_every": 1, "threads": 1})),
    ),
}


def record(folder: Path, names: list[str] | None = None) -> dict[str, Record]:
    """Train the cases in `folder` and record what came out; with `names` only those, and the ones they start from."""
    for preset in dict.fromkeys(case.preset for case in CASES.values()):
        prepare_world(preset, folder / preset, SIZES, lambda line: None)
    wanted = list(CASES) if names is None else names
    parents = {parent for name in wanted if (parent := CASES[name].init_from)}
    return {name: _record_case(name, folder) for name in CASES if name in parents or name in wanted}


def _record_case(name: str, folder: Path) -> Record:
    case = CASES[name]
    content: dict[str, Any] = {
        "schema": _schema(folder / case.preset / "schema.yaml"),
        "model": case.model,
        "domains": None if case.domain is None else [case.domain],
        "tasks": case.tasks,
        "init_from": None if case.init_from is None else str(folder / case.init_from),
        "loader": {"batch_size": 256},
        "optimizer": {"tables": {"lr": 0.1}, "dense": {"lr": 0.01}},
        "trainer": {"log_every": 1, "threads": 1},
        **dict(case.changes),
    }
    run = folder / name
    train(validate(RunConfig, content, name), run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    tensors = _tensors(max((run / "checkpoints").glob("step_*")))
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "weights": {
            key.removeprefix("model."): float(tensor.double().norm())
            for key, tensor in tensors.items()
            if key.startswith("model.")
        },
        "sha256": _hash(tensors),
    }


def _schema(path: Path) -> dict[str, Any]:
    """A world's schema, some of its features read as numbers: worlds have none of their own."""
    content = load_yaml(path)
    for feature in content["features"]:
        if feature["column"] in NUMBERS:
            feature.update(kind="dense", rows=None)
    return content


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states of a checkpoint, by name."""
    index: dict[str, Any] = Reader(checkpoint).read_metadata().state_dict_metadata
    tensors = {key: torch.zeros(entry.size, dtype=entry.properties.dtype) for key, entry in sorted(index.items())}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant here
        load(tensors, checkpoint, alone=True)
    return tensors


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(here: dict[str, Record], there: dict[str, Record]) -> list[str]:
    """What two records do not have in common, bit by bit."""
    found = [f"{name}: only in one of the two" for name in sorted(here.keys() ^ there.keys())]
    for name in sorted(here.keys() & there.keys()):
        weights = [record["weights"] for record in (here[name], there[name])]
        found += [
            f"{name}: weight {key} only in one of the two" for key in sorted(weights[0].keys() ^ weights[1].keys())
        ]
        if here[name]["losses"] != there[name]["losses"]:
            found.append(f"{name}: losses {here[name]['losses']} and {there[name]['losses']}")
        elif here[name]["sha256"] != there[name]["sha256"]:
            found.append(f"{name}: losses agree, weights or optimizer states do not")
    return found


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def write(file: Annotated[Path, typer.Argument(help="JSON file to write.")]) -> None:
    """Record what this checkout computes."""
    with tempfile.TemporaryDirectory() as folder:
        content = record(Path(folder))
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@app.command()
def compare(other: Annotated[Path, typer.Argument(help="Root folder of another checkout.")]) -> None:
    """Train in this checkout and in another one, and compare bit by bit; exit code 1 where anything differs."""
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for place, root in enumerate((Path.cwd(), other)):
            file = Path(folder).resolve() / f"{place}.json"
            command = [sys.executable, "-m", "tools.golden", "write", str(file)]
            subprocess.run(command, cwd=root, check=True, env={**os.environ, "PYTHONPATH": str(root.resolve())})
            records.append(json.loads(file.read_text(encoding="utf-8")))
    found = differences(*records)
    print("\n".join(found) if found else f"{len(records[0])} cases: all losses, weights and optimizer states agree")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    app()
