"""Checks that training works on this machine's GPU, in minutes, and measures how fast it is; runs on a CPU too.

python -m tools.gpu_check --out report.json
"""

from __future__ import annotations

import platform
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from packaging.utils import canonicalize_name

from tools.gpu_check import kernels, runs, timing
from tools.gpu_check.step import Machine, Step, run_step
from torchrec_xd.atomic_write import write_json
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError
from torchrec_xd.writable import check_output_file

STEPS: dict[str, Step] = {
    "kernels": kernels.kernels,
    "weights": runs.weights,
    "against_cpu": runs.against_cpu,
    "pipeline": runs.pipeline,
    "resume": runs.resume,
    "scoring": runs.scoring,
    "cached_tables": runs.cached_tables,
    "syncs": timing.syncs,
    "overlap": timing.overlap,
    "memory": kernels.memory,
    "speed": timing.speed,
    "reading": timing.reading,
}
PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyarrow")


def main(
    out: Annotated[Path, typer.Option(help="The report (JSON), written anew after every step.")],
    only: Annotated[list[str] | None, typer.Option(help="A step to run; may be given several times.")] = None,
) -> None:
    """Run every step, and end with 1 if something is wrong."""
    check_output_file(out, "--out")
    for name in only or ():
        if name not in STEPS:
            raise UserError(f"--only {name}: no such step; these are: {', '.join(STEPS)}")
    report: dict[str, Any] = {"device": device(), "versions": versions(), "steps": {}}
    print(report["device"], report["versions"], sep="\n", flush=True)
    where = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        for name in only or STEPS:
            own = Path(folder) / name
            own.mkdir()
            entry = run_step(STEPS[name], Machine(where, own))
            report["steps"][name] = entry
            write_json(out, report, indent=1)
            verdict = {True: "ok", False: "WRONG", None: "not run"}[entry["ok"]]
            print(f"{name}: {verdict}, {entry['seconds']} s, {entry['found']}", flush=True)
    wrong = [name for name, entry in report["steps"].items() if entry["ok"] is False]
    if wrong:
        print(f"wrong: {', '.join(wrong)}; see {out}", flush=True)
        raise SystemExit(1)


def device() -> str:
    """The GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return f"no GPU; CPU {torch.cpu.get_capabilities().get('cpu_name', platform.processor())}"
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, sm_{major}{minor}, CUDA {torch.version.cuda}"


def versions() -> dict[str, str]:
    """Of Python and the packages that matter here, as far as they are installed."""
    installed = {found.name: found.version for found in distributions()}
    named = {str(canonicalize_name(name)): number for name, number in installed.items() if name}
    return {"python": platform.python_version(), **{name: named[name] for name in PACKAGES if name in named}}


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
