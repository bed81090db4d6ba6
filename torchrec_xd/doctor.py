"""What this machine and its packages can do, and what is wrong with them. Imports nothing that may be broken."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

CPU_SETUP = "on a CPU machine run `make clean quickstart`"
GPU_SETUP = "on a GPU machine run `pip install -e '.[cuda]'` in a fresh environment"
SETUP = f"{CPU_SETUP}; {GPU_SETUP}"
IMPORTS = ("torch", "fbgemm_gpu", "torchrec")
"""Tried in this order: each needs the ones before it."""
KERNELS = "kernels"
"""What is tried last: an operator of FBGEMM on every GPU."""
WHEEL_CODE = {"1.9": ("sm_80", "sm_90a", "sm_100f")}
"""By release of FBGEMM: what its CUDA wheels on PyPI hold code for, as read from the wheels; they hold no PTX."""
NO_GPU = "set CUDA_VISIBLE_DEVICES to nothing"


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    value: str
    """What was found."""
    ok: bool = True
    """False where something will not work."""
    advice: str = ""
    """What to do about it; also given where it works, but could work better."""


def examine() -> list[Check]:
    """Python, package versions, FBGEMM's build, imports, CPU, memory and GPUs, in this order; takes some seconds.

    Packages that may be broken are imported by a process of their own, so that a crash there is a finding here.
    """
    found = _try_imports()
    torch = found.get("torch", {})
    driver = Path("/proc/driver/nvidia/version").exists()
    seen = bool(torch.get("gpus"))
    builds = _fbgemm_builds()
    tried = found.get(KERNELS, {}) if any(not name.endswith("-cpu") for name in builds) else {}
    return [
        *_versions(),
        _fbgemm(driver or seen, seen),
        *(_import(name, found) for name in IMPORTS),
        *_cpu(Path("/proc/cpuinfo")),
        Check("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"),
        _gpus(torch, tried, driver, next(iter(builds.values()), "")),
    ]


def _versions() -> list[Check]:
    """Python and every package that our own metadata asks for, TorchRec included, against the range it asks for."""
    try:
        own = metadata.distribution("torchrec-xd")
    except metadata.PackageNotFoundError:
        return [Check("torchrec-xd", "not installed", False, f"only its metadata lists what it needs: {SETUP}")]
    python = platform.python_version()
    wanted = SpecifierSet(own.metadata["Requires-Python"])
    fits = wanted.contains(python, prereleases=True)
    advice = "" if fits else "make clean, then choose another interpreter: make PYTHON=python3.12 quickstart"
    checks = [Check("torchrec-xd", own.version), Check("Python", _against(python, wanted), fits, advice)]
    requirements = [Requirement(text) for text in own.requires or []]
    checks += [_version(requirement) for requirement in requirements if _is_needed(requirement)]
    return checks


def _is_needed(requirement: Requirement) -> bool:
    """TorchRec is needed too, though only the extra `cuda` asks for it; see pyproject.toml."""
    return requirement.name == "torchrec" or not requirement.marker or requirement.marker.evaluate({"extra": ""})


def _version(requirement: Requirement) -> Check:
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, _against("missing", requirement.specifier), False, SETUP)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Check(requirement.name, _against(found, requirement.specifier), fits, "" if fits else SETUP)


def _against(found: str, wanted: SpecifierSet) -> str:
    return f"{found} (needs {wanted})"


def _installed() -> dict[str, str]:
    """The version of every distribution, by its canonical name."""
    return {str(canonicalize_name(found.name)): found.version for found in metadata.distributions() if found.name}


def _fbgemm_builds() -> dict[str, str]:
    return {name: version for name, version in sorted(_installed().items()) if name.startswith("fbgemm-gpu")}


def _fbgemm(has_gpu: bool, torch_sees_it: bool = False) -> Check:
    """Which build of FBGEMM there is. All own the package fbgemm_gpu, so two overwrite each other's files."""
    versions, builds = _installed(), _fbgemm_builds()
    value = " and ".join(f"{name} {version}" for name, version in builds.items())
    if not builds:
        return Check("FBGEMM", "missing", False, SETUP)
    if len(builds) > 1:
        return Check("FBGEMM", value, False, f"they overwrite each other's files, keep one: {SETUP}")
    name, version = next(iter(builds.items()))
    if _series(version) != _series(versions.get("torchrec", version)):
        return Check("FBGEMM", f"{value} with torchrec {versions['torchrec']}", False, f"use a pair: {SETUP}")
    if not name.endswith("-cpu"):
        return Check("FBGEMM", f"CUDA build, {value}", has_gpu, "" if has_gpu else f"it needs a GPU: {CPU_SETUP}")
    value = f"CPU build, {value}"
    if torch_sees_it:
        advice = f"training would take the GPU, for which this build has no code: {GPU_SETUP}, or {NO_GPU}"
        return Check("FBGEMM", value, False, advice)
    return Check("FBGEMM", value, True, f"the GPU stays idle: {GPU_SETUP}" if has_gpu else "")


def _series(version: str) -> tuple[int, ...]:
    """What FBGEMM and TorchRec are released by: 1.9 of 1.9.2."""
    return Version(version).release[:2]


def _try_imports() -> dict[str, dict[str, Any]]:
    """Output of `_report_imports` in its own process; the last line of stderr as `error` of what failed."""
    command = [sys.executable, "-m", __name__]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    found: dict[str, dict[str, Any]] = {}
    for line in run.stdout.splitlines():
        if line.startswith('{"import": '):
            report = json.loads(line)
            found[report.pop("import")] = report
    failed = next((name for name in (*IMPORTS, KERNELS) if name not in found), None)
    if failed is not None:
        last_words = [line.strip() for line in run.stderr.splitlines() if line.strip()][-1:]
        crash = [f"crashed with {signal.Signals(-run.returncode).name}"] if run.returncode < 0 else []
        found[failed] = {"error": ": ".join(crash + last_words)}
    return found


def _report_imports() -> None:
    """Import one package after the other, try it, then the GPUs, and report on stdout what was found."""
    import torch  # noqa: PLC0415 - each import may crash, and what came before it has been reported by then

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    described = [
        {"name": gpu.name, "gib": round(gpu.total_memory / 2**30), "capability": [gpu.major, gpu.minor]} for gpu in gpus
    ]
    _report("torch", cuda=torch.version.cuda, gpus=described)

    import fbgemm_gpu  # noqa: F401, PLC0415

    assert torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2])).tolist() == [0, 1, 3]
    _report("fbgemm_gpu")

    import torchrec  # noqa: F401, PLC0415 - its distributed part too

    _report("torchrec")

    def trial(index: int) -> str:
        try:
            found = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2], device=f"cuda:{index}")).tolist()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
        return "" if found == [0, 1, 3] else f"{found} in place of [0, 1, 3]"

    _report(KERNELS, gpus=[trial(index) for index in range(len(gpus))])


def _report(name: str, **found: object) -> None:
    sys.stdout.write(json.dumps({"import": name, **found}) + "\n")
    sys.stdout.flush()


def _import(name: str, found: dict[str, dict[str, Any]]) -> Check:
    if name not in found:
        return Check(f"import {name}", "not tried, as the one before failed", False)
    error = found[name].get("error")
    if error is None:
        return Check(f"import {name}", "works")
    return Check(f"import {name}", error, False, f"the installation is broken: {SETUP}")


def _cpu(cpuinfo: Path) -> list[Check]:
    """Cores, and the instructions that decide how fast tables and dense layers are."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", text, re.MULTILINE))
    checks = [Check("CPU", f"{fields.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} cores")]
    if "flags" not in fields:
        return checks
    flags = set(fields["flags"].split())
    avx2 = "avx2" in flags
    bf16 = sorted(flags & {"avx512_bf16", "amx_bf16"})
    return [
        *checks,
        Check(
            "AVX2", "yes" if avx2 else "no", avx2, "" if avx2 else "FBGEMM's CPU build needs it: take another machine"
        ),
        Check("AVX-512", "yes" if "avx512f" in flags else "no"),
        Check("AMX", "yes" if "amx_tile" in flags else "no"),
        Check("bf16", ", ".join(bf16) or "no", True, "" if bf16 else "measure before you train in bf16 here"),
    ]


def _gpus(torch: dict[str, Any], kernels: dict[str, Any], driver: bool, fbgemm: str) -> Check:
    """What GPUs there are, and whether the CUDA build of this version of FBGEMM works on them."""
    if gpus := torch.get("gpus"):
        value = "; ".join(f"{gpu['name']}, {gpu['gib']} GiB, {_sm(gpu)}" for gpu in gpus)
        if "error" in kernels:
            faults = [f"a small operator of FBGEMM fails on them: {kernels['error']}"]
        else:
            trials = kernels.get("gpus") or [None] * len(gpus)
            found = [_fault(gpu, trial, fbgemm) for gpu, trial in zip(gpus, trials, strict=True)]
            faults = [fault for fault in dict.fromkeys(found) if fault]  # of equal GPUs, once
        return Check("GPUs", f"{value} (CUDA {torch['cuda']})", not faults, "; ".join(faults))
    if not driver:
        return Check("GPUs", "none")
    if "cuda" not in torch:
        return Check("GPUs", "a driver is loaded, but torch cannot be asked", False, "fix the import of torch first")
    if torch["cuda"] is None:
        return Check("GPUs", "a driver is loaded, but torch is a CPU build", True, f"to use them: {GPU_SETUP}")
    causes = f"the driver is too old for CUDA {torch['cuda']}, or CUDA_VISIBLE_DEVICES hides them"
    return Check("GPUs", "a driver is loaded, but torch sees no GPU", False, causes)


def _fault(gpu: dict[str, Any], trial: str | None, fbgemm: str) -> str:
    """Why FBGEMM fails on a GPU, and the remedy; `trial` is what went wrong there, None if nothing was tried."""
    release = ".".join(map(str, _series(fbgemm))) if fbgemm else ""
    code = WHEEL_CODE.get(release, ())
    if trial == "" or (trial is None and (not code or _runs(gpu, code))):
        return ""
    if not code or _runs(gpu, code):
        return f"{gpu['name']} ({_sm(gpu)}): a small operator of FBGEMM fails on it: {trial}"
    held = f"{', '.join(code[:-1])} and {code[-1]}"
    return (
        f"{gpu['name']} ({_sm(gpu)}): FBGEMM {release}'s wheels have code for {held}, which run on GPUs of sm_80 to "
        "sm_89 (A100, A10, L40S), sm_90 (H100, H200) and sm_100 to sm_103 (B200, B300): take one of these, build "
        f"FBGEMM from source with TORCH_CUDA_ARCH_LIST={'.'.join(map(str, gpu['capability']))}, or {NO_GPU}"
    )


def _runs(gpu: dict[str, Any], code: Iterable[str]) -> bool:
    """Whether code runs on a GPU: on the same and later ones of its generation; with the letter a on the same alone."""
    major, minor = gpu["capability"]
    parts = [re.fullmatch(r"sm_(\d+)(\d)([af]?)", architecture) for architecture in code]
    return any(
        int(part[1]) == major and (int(part[2]) == minor if part[3] == "a" else int(part[2]) <= minor)
        for part in parts
        if part
    )


def _sm(gpu: dict[str, Any]) -> str:
    return "sm_{}{}".format(*gpu["capability"])


if __name__ == "__main__":
    _report_imports()
