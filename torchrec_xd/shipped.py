"""The configs that come with the package: run configs, schemas, studies, replays, and cluster profiles.

In a clone they are the folder `configs/` at its top; a wheel holds a copy of that folder.
"""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path

from torchrec_xd.errors import UserError

CONFIGS = next(
    (
        folder
        for folder in (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
        if (folder / "clusters").is_dir()
    ),
    Path("configs"),
)
"""The folder of all of them."""
CLUSTERS = CONFIGS / "clusters"
"""Cluster profiles for the planner."""


def shipped_configs() -> dict[str, str]:
    """Name to the comment in the first line, of every shipped config."""
    return {_name(path): _summary(path) for path in sorted(CONFIGS.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file of a shipped config.

    Raises:
        UserError: there is none of this name.
    """
    path = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise UserError(f"no shipped config '{name}'; {_nearest(name)}`torchrec-xd config list` shows all")
    return path


def config_file(path: Path) -> Path:
    """A file that is there, else the shipped config of this name: `configs/` and `.yaml` may be left out."""
    shipped = CONFIGS / f"{path.as_posix().removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return shipped if not path.exists() and shipped.is_file() else path


def copy_config(name: str, out: Path) -> list[Path]:
    """Copy a shipped config and every file that it refers to into `out`, folders kept; returns where they are.

    Raises:
        UserError: there is none of this name, or one of the files exists in `out` with other content.
    """
    files = _with_references(find_config(name))
    targets = {source: out / source.relative_to(CONFIGS) for source in files}
    for source, target in targets.items():
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise UserError(f"{target} exists with other content; it is left as it is: name another folder with --out")
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # in a clone the copy may be the file itself
            shutil.copyfile(source, target)
    return list(targets.values())


def _nearest(name: str) -> str:
    """The names that look like a wrong one, by the whole name or by its last part."""
    names = list(shipped_configs())
    by_end = {known: known.rpartition("/")[2] for known in names}
    close = difflib.get_close_matches(name, names, n=3)
    ends = difflib.get_close_matches(name.rpartition("/")[2], by_end.values(), n=3)
    close += [known for known in names if by_end[known] in ends and known not in close]
    return f"did you mean {' or '.join(repr(known) for known in close[:3])}? " if close else ""


def _with_references(path: Path) -> list[Path]:
    """A file, and the shipped files that it names, directly or not."""
    found, waiting = [], [path]
    while waiting:
        current = waiting.pop()
        found.append(current)
        for name in re.findall(r"[\w./-]+\.yaml", current.read_text(encoding="utf-8")):
            other = (current.parent / name).resolve()
            if (
                other.is_file()
                and other.is_relative_to(CONFIGS.resolve())
                and (at := CONFIGS / other.relative_to(CONFIGS.resolve())) not in (*found, *waiting)
            ):
                waiting.append(at)
    return found


def _name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def _summary(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
