"""The lock against what pyproject.toml asks for, on every Python that we promise; no network."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.locks import PYTHONS, extra, locked, project, requirements


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_what_pyproject_asks_for(python: str) -> None:
    wanted = [*project()["dependencies"], *extra("dev"), *extra("data"), *requirements("cpu.in")]
    versions = locked(python)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_cpu_and_gpu_run_the_same_torchrec_and_fbgemm(python: str) -> None:
    pins = {requirement.name: requirement.specifier for requirement in map(Requirement, extra("cuda"))}
    assert pins["torchrec"].contains(locked(python)["torchrec"])
    assert pins["fbgemm-gpu"].contains(locked(python)["fbgemm-gpu-cpu"])


@pytest.mark.parametrize("python", PYTHONS)
def test_nothing_excluded_is_locked(python: str) -> None:
    assert not set(requirements("cpu.excludes")) & set(locked(python))
    assert not [name for name in locked(python) if name.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_what_serves_is_locked_in_the_same_versions_without_torch(python: str) -> None:
    served = locked(python, "serve.lock")
    assert served.items() <= locked(python).items()
    assert not {"torch", "torchrec", "duckdb", "ibis-framework", "pandas"} & set(served)
    bounds = {Requirement(text).name: text for text in (*project()["dependencies"], *extra("serve"))}
    assert [line for line in requirements("serve.in") if bounds[Requirement(line).name] != line] == []


@pytest.mark.parametrize("lock", ["cpu.lock", "serve.lock"])
def test_the_lock_holds_names_versions_and_markers_alone(lock: str) -> None:
    """No index, no address, no file: what it names is found wherever its user's pip looks."""
    assert not [line for line in requirements(lock) if "://" in line or "@" in line or line.startswith("-")]
