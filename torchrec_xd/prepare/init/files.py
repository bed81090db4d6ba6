"""Which files an input has, and of which format."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from torchrec_xd.data.lake import lake_files, lake_format
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import UserError
from torchrec_xd.prepare.inputs import ENDINGS, ending_of, format_of
from torchrec_xd.prepare.recipe import Format

_NAMES = ", ".join(f".{ending}" for ending in ENDINGS)


@dataclass(frozen=True)
class Files:
    """The files of one input, with sizes in bytes, as the recipe names them and as they are opened."""

    name: str
    settings: dict[str, Any]
    """Of the recipe's `inputs`."""
    format: Format
    filesystem: Any
    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)


def find(name: str, path: str, format: Format | None = None) -> Files:
    """The files at a path: a file, a folder, a glob, or the folder of a lake table.

    Raises:
        UserError: nothing is there, it cannot be listed, or its format is not known by its ending.
    """
    filesystem, root = _filesystem(path)
    lake = format if format in ("delta", "iceberg") else lake_format(Path(root)) if Path(root).is_dir() else None
    if lake is not None:
        found, version = Patience()(functools.partial(lake_files, path, lake), path)
        filesystem, _ = _filesystem(found[0])
        paths = [_filesystem(file)[1] for file in found]
        sizes = [int(filesystem.size(file) or 0) for file in paths]
        settings = {"path": path, "format": lake, "version": version}
        return Files(name, settings, lake, filesystem, tuple(paths), tuple(sizes))
    listed, is_folder = _listed(filesystem, root, path)
    kinds = {file: format or format_of(file) for file in listed}
    known = {file: kind for file, kind in kinds.items() if kind is not None}
    if not known:
        ending = Path(min(listed)).suffix or Path(min(listed)).name
        raise UserError(
            f"{path}: {ending} is the ending of no known format; endings are: {_NAMES} (with .gz after it for text); "
            "rename the file, or name a folder of a Delta Lake or Iceberg table"
        )
    if len(set(known.values())) > 1:
        raise UserError(
            f"{path}: holds files of several formats ({', '.join(sorted(set(known.values())))}); name a glob of one, "
            f"as {name}='{path.rstrip('/')}/*.{ending_of(min(known))}'"
        )
    kind = next(iter(known.values()))
    settings = {"path": path}
    endings = {ending_of(file) for file in known}
    if is_folder and endings != {"parquet"}:
        # Such folders are named by a glob: so no other file in them is read.
        deep = any("/" in file[len(root.rstrip("/")) + 1 :] for file in known)
        below = path.rstrip("/") + ("/**" if deep else "")
        globs = tuple(f"{below}/*.{ending}" for ending in sorted(endings))
        settings["path"] = globs[0] if len(globs) == 1 else list(globs)
    if format is not None or (kind != "parquet" and len(known) > 1) or Path(path).suffix.lower() == ".tsv":
        settings["format"] = kind
    files = sorted(known)
    return Files(name, settings, kind, filesystem, tuple(files), tuple(int(listed[file]) for file in files))


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        return url_to_fs(path)  # type: ignore[no-any-return]
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{path}: this file system cannot be opened ({error}); install its package") from None


def _listed(filesystem: Any, root: str, path: str) -> tuple[dict[str, int], bool]:
    """Files with their sizes, and whether `root` is a folder."""
    try:
        if filesystem.isfile(root):
            return {root: int(filesystem.size(root) or 0)}, False
        is_folder = bool(filesystem.isdir(root))
        if is_folder:
            infos = filesystem.find(root, detail=True)
        elif any(sign in root for sign in "*?["):
            infos = {file: info for file, info in filesystem.glob(root, detail=True).items() if info["type"] == "file"}
        else:
            infos = {}
    except OSError as error:
        raise UserError(f"{path}: cannot be listed: {error}") from None
    start = len(root.rstrip("/")) + 1 if is_folder else 0
    files = {
        file: int(info["size"])
        for file, info in infos.items()
        if not (is_folder and any(_hidden(part) for part in file[start:].split("/")))
    }
    if not files:
        raise UserError(_nothing(path, root, is_folder))
    return files, is_folder


def _hidden(part: str) -> bool:
    """Names that Spark and the like give to what is no data; `_region=eu` is a partition."""
    return part.startswith(".") or (part.startswith("_") and "=" not in part)


def _nothing(path: str, root: str, is_folder: bool) -> str:
    if is_folder:
        return f"{path}: the folder holds no files; name files or folders with: {_NAMES}"
    parent = Path(root).parent
    names = sorted(each.name for each in parent.iterdir()) if parent.is_dir() else []
    near = difflib.get_close_matches(Path(root).name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    there = ", ".join(names[:10]) + (", …" if len(names) > 10 else "") or "nothing"
    return f"{path}: no such file{hint}; in {parent} there is: {there}"
