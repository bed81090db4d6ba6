"""Run folders that something has damaged: told, or passed over, and never measured as if they were whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import evaluate
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    content = {
        "schema": schema_at(write_feed(tmp_path_factory.mktemp("folders") / "feed", rows=96)),
        "model": {"name": "single", "widths": [4], "dropout": 0.1},
        "domains": ["post"],
        "loader": {"batch_size": 32},
        "trainer": {"epochs": 3, "threads": 1},
        "checkpoint": {"keep": 9},
    }
    return validate(RunConfig, content, "test")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A finished run of three checkpoints."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config, run)
    return run


@pytest.fixture(scope="module")
def possible(config, whole, tmp_path_factory):
    """What may be measured: the metrics of each checkpoint."""
    found = []
    for checkpoint in (whole / "checkpoints").iterdir():
        run = tmp_path_factory.mktemp("alone") / "run"
        shutil.copytree(whole, run)
        for other in (run / "checkpoints").iterdir():
            if other.name != checkpoint.name:
                shutil.rmtree(other)
        found.append(evaluate(run)["eval"])
    assert len({json.dumps(metrics) for metrics in found}) == 3
    return found


def damage_folder(kind: str, folder: Path, checkpoints: list[Path], rng: np.random.Generator) -> None:
    if kind == "rename":
        target = folder.with_name(f"step_{rng.integers(200):09d}_x"[: int(rng.choice([14, 16]))])
        if not target.exists():
            folder.rename(target)
    elif kind == "copy":
        shutil.copytree(folder, folder.with_name(f"step_{rng.integers(10**9):09d}"), dirs_exist_ok=True)
    else:
        shutil.rmtree(folder)
        folder.symlink_to(checkpoints[0] if folder != checkpoints[0] else folder.parents[1])


def damage(run: Path, rng: np.random.Generator) -> str:
    """Damage one thing in a run folder; says what was done."""
    checkpoints = sorted(path for path in (run / "checkpoints").iterdir() if not path.is_symlink())
    folder = checkpoints[rng.integers(len(checkpoints))]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        return "nothing"
    file = files[rng.integers(len(files))]
    if rng.random() < 0.2:
        names = ("plan.json", "data.json", "id_kinds.json", "metrics.jsonl", "metrics.json", "log.txt")
        chosen = run / names[rng.integers(len(names))]
        file = chosen if chosen.is_file() else file
    content = file.read_bytes()
    at = int(rng.integers(len(content))) if content else 0
    kind = rng.choice(["cut", "flip", "delete", "empty", "junk", "rename", "swap", "folder", "copy", "link"])
    if kind in ("rename", "copy", "link"):
        damage_folder(kind, folder, checkpoints, rng)
    elif kind == "delete":
        file.unlink()
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    elif kind == "swap":
        other = checkpoints[rng.integers(len(checkpoints))] / file.name
        if other.is_file() and file.parent not in (run, other.parent):
            shutil.copyfile(other, file)
    else:
        flipped = content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :] if content else b""
        file.write_bytes({"cut": content[:at], "flip": flipped, "empty": b"", "junk": rng.bytes(200)}[kind])
    return f"{kind} {file.relative_to(run)} at {at}"


def test_a_damaged_run_is_evaluated_by_what_is_whole_or_refused(config, whole, possible, tmp_path, fuzz_seeds):
    refused = 0
    for seed in fuzz_seeds:
        rng = np.random.default_rng(seed)
        run = tmp_path / "run"
        shutil.copytree(whole, run)
        done = [damage(run, rng) for _ in range(rng.integers(1, 4))]
        print(f"seed {seed}: {done}")
        try:
            assert evaluate(run, "test", str(rng.choice(["best", "last"])))["eval"] in possible
        except UserError:
            refused += 1
        shutil.rmtree(run)
    assert refused < len(fuzz_seeds) / 2


def test_a_damaged_run_is_resumed_to_the_same_end_or_refused(config, whole, tmp_path, fuzz_seeds):
    """Whatever was lost is trained again, to the same bits."""
    expected = json.loads((whole / "metrics.json").read_text())
    for seed in fuzz_seeds[: len(fuzz_seeds) // 2]:
        rng = np.random.default_rng(seed)
        run = tmp_path / "run"
        shutil.copytree(whole, run)
        done = [damage(run, rng) for _ in range(rng.integers(1, 4))]
        print(f"seed {seed}: {done}")
        try:
            train(config, run, resume=True)
        except UserError as error:
            print(f"  {error}")
        else:
            content = json.loads((run / "metrics.json").read_text())
            assert (content["eval"], content["checkpoint"]) == (expected["eval"], expected["checkpoint"])
        shutil.rmtree(run)
