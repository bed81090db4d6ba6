"""The doctor: each fault is made on purpose, as folders of metadata or packages that break, and must be named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchrec_xd import doctor
from torchrec_xd.doctor import Check, examine

ROOT = Path(__file__).parents[1]
OWN: dict[str, str | list[str]] = {
    "Requires-Python": ">=3.10,<3.14",
    "Requires-Dist": ["torch<2.15,>=2.14", "rich>=14", "torchrec==1.9.2; extra == 'cuda'", "pyspark; extra == 'spark'"],
}


def install(site: Path, name: str, version: str, fields: dict[str, str | list[str]] | None = None) -> None:
    """Metadata of a distribution, as pip leaves it."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    for field, values in (fields or {}).items():
        lines += [f"{field}: {value}" for value in ([values] if isinstance(values, str) else values)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


def only(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From now on `site` is the only place where distributions are looked for."""
    site.mkdir()
    monkeypatch.setattr("sys.path", [str(site)])
    return site


def named(checks: list[Check], name: str) -> Check:
    [check] = [check for check in checks if check.name == name]
    return check


def test_a_sound_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment that runs these tests, but for our own metadata, which need not be installed here."""
    install(tmp_path, "torchrec-xd", "0.1.0", OWN)
    monkeypatch.syspath_prepend(tmp_path)
    checks = examine()
    assert [check for check in checks if not check.ok] == []
    assert re.fullmatch(r"2\.14\.\d+\S* \(needs <2\.15,>=2\.14\)", named(checks, "torch").value)
    assert named(checks, "torchrec").value == "1.9.2 (needs ==1.9.2)"
    assert re.match(r"(CPU|CUDA) build, fbgemm-gpu", named(checks, "FBGEMM").value)
    assert [named(checks, f"import {name}").value for name in doctor.IMPORTS] == ["works"] * 3
    assert {"CPU", "memory", "GPUs", "Python"} <= {check.name for check in checks}
    assert "pyspark" not in {check.name for check in checks}


def test_versions_outside_the_range_and_missing_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = only(tmp_path / "site", monkeypatch)
    install(site, "torchrec-xd", "0.1.0", OWN | {"Requires-Python": "<3.9"})
    install(site, "torch", "2.15.0+cpu")
    install(site, "rich", "15.0.0")
    checks = doctor._versions()
    assert [check.name for check in checks if not check.ok] == ["Python", "torch", "torchrec"]
    assert named(checks, "torch").value == "2.15.0+cpu (needs <2.15,>=2.14)"
    assert named(checks, "torchrec").value == "missing (needs ==1.9.2)"
    assert "make clean quickstart" in named(checks, "torchrec").advice
    assert "PYTHON=" in named(checks, "Python").advice
    assert named(checks, "rich").ok


def test_not_installed_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(tmp_path / "site", monkeypatch)
    [check] = doctor._versions()
    assert (check.name, check.value, check.ok) == ("torchrec-xd", "not installed", False)


@pytest.mark.parametrize(
    ("builds", "has_gpu", "value", "ok", "advice"),
    [
        ([], False, "missing", False, "make clean quickstart"),
        (["fbgemm_gpu-cpu"], False, "CPU build, fbgemm-gpu-cpu 1.8.0", True, ""),
        (["fbgemm_gpu-cpu"], True, "CPU build, fbgemm-gpu-cpu 1.8.0", True, "the GPU stays idle"),
        (["fbgemm_gpu"], True, "CUDA build, fbgemm-gpu 1.8.0", True, ""),
        (["fbgemm_gpu"], False, "CUDA build, fbgemm-gpu 1.8.0", False, "it needs a GPU"),
        (["fbgemm_gpu", "fbgemm_gpu-cpu"], False, "fbgemm-gpu 1.8.0 and fbgemm-gpu-cpu 1.8.0", False, "keep one"),
        (["fbgemm_gpu", "fbgemm_gpu-cpu"], True, "fbgemm-gpu 1.8.0 and fbgemm-gpu-cpu 1.8.0", False, "keep one"),
    ],
)
def test_builds_of_fbgemm(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    builds: list[str],
    has_gpu: bool,
    value: str,
    ok: bool,
    advice: str,
) -> None:
    site = only(tmp_path / "site", monkeypatch)
    install(site, "torchrec", "1.8.0")
    for build in builds:
        install(site, build, "1.8.0")
    check = doctor._fbgemm(has_gpu)
    assert (check.value, check.ok) == (value, ok)
    assert advice in check.advice
    assert bool(advice) == bool(check.advice)


def test_a_cpu_build_of_fbgemm_where_training_would_take_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(only(tmp_path / "site", monkeypatch), "fbgemm_gpu-cpu", "1.9.0")
    check = doctor._fbgemm(has_gpu=True, torch_sees_it=True)
    assert (check.value, check.ok) == ("CPU build, fbgemm-gpu-cpu 1.9.0", False)
    assert "training would take the GPU" in check.advice
    assert "CUDA_VISIBLE_DEVICES" in check.advice


def test_fbgemm_of_another_release_than_torchrec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = only(tmp_path / "site", monkeypatch)
    install(site, "torchrec", "1.8.0")
    install(site, "fbgemm_gpu-cpu", "1.9.0")
    check = doctor._fbgemm(has_gpu=False)
    assert (check.value, check.ok) == ("fbgemm-gpu-cpu 1.9.0 with torchrec 1.8.0", False)


def test_patch_releases_of_fbgemm_and_torchrec_are_a_pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = only(tmp_path / "site", monkeypatch)
    install(site, "torchrec", "1.9.2")
    install(site, "fbgemm_gpu-cpu", "1.9.0")
    assert doctor._fbgemm(has_gpu=False).ok


@pytest.mark.parametrize(
    ("package", "body", "words"),
    [
        ("torch", "raise ImportError('libcudart.so.13: cannot open')", "ImportError: libcudart.so.13: cannot open"),
        ("fbgemm_gpu", "raise OSError('undefined symbol')", "OSError: undefined symbol"),
        ("torchrec", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
    ],
)
def test_an_import_that_fails_or_crashes_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, body: str, words: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(body + "\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    checks = examine()
    broken = named(checks, f"import {package}")
    assert (broken.ok, broken.value) == (False, words)
    assert broken.advice
    before = doctor.IMPORTS[: doctor.IMPORTS.index(package)]
    after = doctor.IMPORTS[doctor.IMPORTS.index(package) + 1 :]
    assert all(named(checks, f"import {name}").ok for name in before)
    assert not any(named(checks, f"import {name}").ok for name in after)


def test_cpu_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Old CPU @ 2 GHz\nflags\t\t: fpu sse2 avx\nbugs\t\t:\n\nprocessor\t: 1\n"
    )
    checks = doctor._cpu(cpuinfo)
    assert named(checks, "CPU").value.startswith("Old CPU @ 2 GHz, ")
    assert not named(checks, "AVX2").ok
    assert [named(checks, name).value for name in ("AVX-512", "AMX", "bf16")] == ["no", "no", "no"]
    assert named(checks, "bf16").advice

    cpuinfo.write_text("model name\t: New CPU\nflags\t\t: avx2 avx512f avx512_bf16 amx_tile amx_bf16\n")
    checks = doctor._cpu(cpuinfo)
    assert [named(checks, name).value for name in ("AVX2", "AVX-512", "AMX")] == ["yes", "yes", "yes"]
    assert named(checks, "bf16") == Check("bf16", "amx_bf16, avx512_bf16")

    assert [check.name for check in doctor._cpu(tmp_path / "no_such_file")] == ["CPU"]


H100 = {"name": "NVIDIA H100", "gib": 80, "capability": [9, 0]}
NO_IMAGE = "CUDA error: no kernel image is available for execution on the device"


@pytest.mark.parametrize(
    ("torch", "driver", "value", "ok"),
    [
        ({"cuda": "13.0", "gpus": [H100]}, True, "NVIDIA H100, 80 GiB, sm_90 (CUDA 13.0)", True),
        ({"cuda": None, "gpus": []}, False, "none", True),
        ({"cuda": "13.0", "gpus": []}, False, "none", True),
        ({"cuda": None, "gpus": []}, True, "a driver is loaded, but torch is a CPU build", True),
        ({"cuda": "13.0", "gpus": []}, True, "a driver is loaded, but torch sees no GPU", False),
        ({"error": "ImportError"}, True, "a driver is loaded, but torch cannot be asked", False),
    ],
)
def test_gpus(torch: dict[str, object], driver: bool, value: str, ok: bool) -> None:
    check = doctor._gpus(torch, {"gpus": [""]}, driver, "1.9.0")
    assert (check.value, check.ok) == (value, ok)
    assert bool(check.advice) == ("a driver" in value)


@pytest.mark.parametrize(
    ("capability", "covered"),
    [
        ([7, 0], False),  # V100
        ([7, 5], False),  # T4
        ([8, 0], True),  # A100
        ([8, 6], True),  # A10
        ([8, 9], True),  # L40S
        ([9, 0], True),  # H100, H200
        ([10, 0], True),  # B200
        ([10, 3], True),  # B300
        ([12, 0], False),  # RTX PRO 6000
    ],
)
def test_the_wheels_of_fbgemm_have_code_for_some_gpus(capability: list[int], covered: bool) -> None:
    """Code of sm_80 runs on later GPUs of that generation, of sm_90a on none, of sm_100f on its family; no PTX."""
    gpus = [H100, {"name": "Another", "gib": 16, "capability": capability}]
    check = doctor._gpus({"cuda": "13.0", "gpus": gpus}, {}, True, "1.9.0")  # without a trial
    assert check.ok == covered
    if not covered:
        major, minor = capability
        assert check.advice.startswith(f"Another (sm_{major}{minor}): FBGEMM 1.9's wheels have code for")
        assert f"TORCH_CUDA_ARCH_LIST={major}.{minor}" in check.advice
        assert "H100 (sm_90)" not in check.advice


def test_a_trial_on_every_gpu_decides() -> None:
    t4 = {"name": "Tesla T4", "gib": 15, "capability": [7, 5]}
    found = {"cuda": "13.0", "gpus": [t4, H100]}
    assert doctor._gpus(found, {"gpus": ["", ""]}, True, "1.9.0").ok  # FBGEMM was built here
    check = doctor._gpus(found, {"gpus": [NO_IMAGE, ""]}, True, "1.9.0")
    assert not check.ok
    assert check.advice.startswith("Tesla T4 (sm_75): FBGEMM 1.9's wheels have code for sm_80, sm_90a and sm_100f")
    assert "NVIDIA H100 (sm_90)" not in check.advice
    check = doctor._gpus(found, {"gpus": ["", "CUDA error: out of memory"]}, True, "1.9.0")
    assert (check.ok, check.advice.split(":")[0]) == (False, "NVIDIA H100 (sm_90)")
    assert "a small operator of FBGEMM fails on it: CUDA error: out of memory" in check.advice
    check = doctor._gpus(found, {"error": "crashed with SIGSEGV"}, True, "1.9.0")
    assert (check.ok, check.advice) == (False, "a small operator of FBGEMM fails on them: crashed with SIGSEGV")
    check = doctor._gpus(found, {"gpus": [NO_IMAGE, ""]}, True, "2.3.0")  # a release whose wheels nobody looked at
    assert (check.ok, NO_IMAGE in check.advice) == (False, True)


FAKE_TORCH = """
from types import SimpleNamespace as Namespace

class Tensor(list):
    tolist = lambda self: list(self)

def tensor(values, device="cpu"):
    found = Tensor(values)
    found.device = device
    return found

def cumsum(values):
    if values.device == "cuda:1":
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\\nCompile with")
    if values.device == "cuda:2":
        {third}
    return Tensor([0, 1, 3])

properties = Namespace(name="GPU", total_memory=16 * 2**30, major=7, minor=5)
cuda = Namespace(device_count=lambda: {count}, get_device_properties=lambda index: properties)
version, ops = Namespace(cuda="13.0"), Namespace(fbgemm=Namespace(asynchronous_complete_cumsum=cumsum))
"""


@pytest.mark.parametrize(
    ("count", "third", "kernels"),
    [
        (0, "pass", {"gpus": []}),
        (3, "pass", {"gpus": ["", NO_IMAGE, ""]}),
        (3, "return Tensor([0, 0, 0])", {"gpus": ["", NO_IMAGE, "[0, 0, 0] in place of [0, 1, 3]"]}),
        (3, "import os; os.abort()", {"error": "crashed with SIGABRT"}),
    ],
)
def test_one_operator_is_tried_on_every_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, third: str, kernels: dict[str, object]
) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("{third}", third).replace("{count}", str(count)))
    for name in ("fbgemm_gpu", "torchrec"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    found = doctor._try_imports()
    assert [found[name] for name in ("fbgemm_gpu", "torchrec", "kernels")] == [{}, {}, kernels]
    assert found["torch"] == {"cuda": "13.0", "gpus": [{"name": "GPU", "gib": 16, "capability": [7, 5]}] * count}
