"""The locks and pyproject.toml, as tests read them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(name: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements" / name).read_text().splitlines()]
    return [line for line in lines if line]


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


def extra(name: str) -> list[str]:
    found: list[str] = project()["optional-dependencies"][name]
    return found


def locked(python: str, name: str = "cpu.lock") -> dict[str, str]:
    """Name → version on Linux with this Python; a name that two lines give a version is an error."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions: dict[str, str] = {}
    for requirement in map(Requirement, requirements(name)):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [pin] = requirement.specifier
            assert pin.operator == "=="
            assert requirement.name not in versions
            versions[canonicalize_name(requirement.name)] = pin.version
    return versions
