"""Whole runs on the device: against the CPU, against themselves, and what is done with them afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.chaos import differences
from tools.gpu_check.step import Found, Machine, NeedsGpuError
from torchrec_xd.benchmark import synthetic
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.predictions import read_predictions
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.planner import Constraint, PlannerSettings, make_plan, this_machine
from torchrec_xd.settings import validate
from torchrec_xd.training.building import build, build_sharded
from torchrec_xd.training.inference import score
from torchrec_xd.training.train_run import train

SMALL = {"name": "mkt_pretrain", "expert_widths": [16, 8], "aligned_dim": 4, "tower_widths": [8]}
TRAIN_ROWS, TABLE_ROWS, BATCH = 2048, 1000, 64
"""32 steps an epoch."""
EXACT = {"tf32": False, "deterministic": True}
CPU_LIMIT = 1e-3
"""Largest relative difference of a loss between the device and the CPU, in the first ten steps from equal weights."""


def small_run(folder: Path, **changes: Any) -> RunConfig:
    """A run of two epochs of MKT's first stage on made-up rows."""
    if not (folder / "data").exists():
        synthetic.write_domains(folder / "data", TRAIN_ROWS, TABLE_ROWS)
    settings: dict[str, Any] = {
        "model": SMALL,
        "loader": {"batch_size": BATCH},
        "trainer": {"epochs": 2, "log_every": 1, **EXACT},
        "checkpoint": {"every_steps": 10, "keep": 50},
        "embeddings": {"init_std": 0.3},
        "optimizer": {"tables": {"lr": 0.1}, "dense": {"lr": 0.01}},
    }
    schema = synthetic.domains_schema(folder / "data", TABLE_ROWS)
    content = {"schema": schema, "tasks": ["click@source", "click@target"], **settings, **changes}
    return validate(RunConfig, content, "gpu_check")


def weights(machine: Machine) -> Found:
    """Every weight of a sharded model lies on the device."""
    with process_group() as processes:
        model, _ = build_sharded(small_run(machine.folder), processes)
        places = [parameter.device.type for parameter in model.parameters()]
    found = {place: places.count(place) for place in sorted(set(places))}
    return Found(set(places) == {machine.device.type}, {"weights": found})


def against_cpu(machine: Machine) -> Found:
    """A run, and the rest of it from its first checkpoint once more on the CPU."""
    run = machine.folder / "run"
    content = train(small_run(machine.folder), run)
    on_cpu = from_first_checkpoint(run, machine.folder / "on-cpu")
    _command("train", str(on_cpu / "config.yaml"), "--run-dir", str(on_cpu), "--resume")
    here, there = losses(run), losses(on_cpu)
    apart = [abs(here[step] - there[step]) / abs(there[step]) for step in here if step > 10]
    found = {
        "AUC": content["eval"]["click@target"]["auc"],
        "peak GiB": content["train"]["ranks"][0]["peak_memory_bytes"] / 2**30,
        "relative difference of the loss from the CPU's": {"first 10 steps": max(apart[:10]), "all": max(apart)},
        "steps compared": len(apart),
    }
    return Found(max(apart[:10]) <= CPU_LIMIT, found)


def pipeline(machine: Machine) -> Found:
    """The pipeline trains the bits of the plain loop."""
    for name, pipelined in (("plain", False), ("pipelined", True)):
        trainer = {"epochs": 2, "log_every": 1, "pipeline": pipelined, **EXACT}
        train(small_run(machine.folder, trainer=trainer), machine.folder / name)
    return _equal({"pipelined and plain": differences(machine.folder / "plain", machine.folder / "pipelined")})


RESUMED: dict[str, dict[str, Any]] = {
    "MKT": {},
    "MMoE with dropout": {"model": {"name": "mmoe", "expert_widths": [16, 8], "tower_widths": [8], "dropout": 0.3}},
    "fp16 tables": {"embeddings": {"init_std": 0.3, "dtype": "fp16"}},
}
"""What is resumed, as changes of the small run."""


def resume(machine: Machine) -> Found:
    """A run that goes on from its first checkpoint ends with the bits of one that was left alone."""
    found = {}
    for name, changes in RESUMED.items():
        run = machine.folder / name.replace(" ", "-")
        train(small_run(machine.folder, **changes), run)
        again = from_first_checkpoint(run, machine.folder / f"{run.name}-again")
        train(load_run(again), again, resume=True)
        found[name] = differences(run, again)
    return _equal(found)


def scoring(machine: Machine) -> Found:
    """Scores of a run, on the device and on the CPU."""
    run, here, there = (machine.folder / name for name in ("run", "here.parquet", "cpu.parquet"))
    train(small_run(machine.folder), run)
    rows = score(run, None, here, "target", "last")
    rows_of = str(machine.folder / "data" / "target_test.parquet")
    _command("score", str(run), rows_of, "--domain", "target", "--checkpoint", "last", "--out", str(there))
    columns = [read_predictions(path, "prob_click@target") for path in (here, there)]
    apart = float(np.abs(columns[0] - columns[1]).max())
    return Found(
        rows == len(columns[0]) == TRAIN_ROWS // 8 and apart < 1e-4, {"rows": rows, "largest difference": apart}
    )


def cached_tables(machine: Machine) -> Found:
    """Tables in host memory, of which the GPU caches rows, train as those in its own memory do."""
    if not machine.cuda:
        raise NeedsGpuError
    train(small_run(machine.folder), machine.folder / "device")
    config = small_run(machine.folder)
    kinds = Constraint(tables=("*",), sharding_types=("table_wise",), kernels=("fused_uvm_caching",))
    model, cluster = build(config), this_machine("cuda", 1, 1)
    settings = PlannerSettings(batch_size=BATCH, constraints=(kinds,))
    make_plan(model, sharders(), cluster, settings).plan.save(machine.folder / "plan.json")
    sharding = {"plan": str(machine.folder / "plan.json")}
    train(small_run(machine.folder, sharding=sharding), machine.folder / "cached")
    here, there = (losses(machine.folder / name) for name in ("device", "cached"))
    apart = max(abs(here[step] - there[step]) / abs(here[step]) for step in here)
    return Found(apart < CPU_LIMIT, {"relative difference of the loss": apart})


def from_first_checkpoint(run: Path, copy: Path) -> Path:
    """A copy of a finished run as it was when its first checkpoint had been written."""
    shutil.copytree(run, copy)
    for folder in sorted((copy / "checkpoints").glob("step_*"))[1:]:
        shutil.rmtree(folder)
    (copy / "metrics.json").unlink()
    return copy


def losses(run: Path) -> dict[int, float]:
    """Step to loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _equal(found: dict[str, list[str]]) -> Found:
    said = {name: differ[:5] or "bit for bit the same" for name, differ in found.items()}
    return Found(not any(found.values()), said)


def _command(*words: str) -> None:
    """A command of this package in a process that sees no GPU."""
    command = [sys.executable, "-m", "torchrec_xd.cli", *words]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} on the CPU ended with {done.returncode}: {done.stderr[-1500:]}")
