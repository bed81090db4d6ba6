"""Where the Parquet files of a domain and split lie: files, folders and globs, on any file system."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import fs

from torchrec_xd.data.filesystems import filesystem_of, join
from torchrec_xd.data.lake import lake_location, pinned_files, refuse_table_folder
from torchrec_xd.data.outages import Patience, is_outage
from torchrec_xd.errors import UserError

_NAMES = 20


def find_files(
    locations: Sequence[str],
    root: str,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> tuple[fs.FileSystem, list[str]]:
    """The files at all locations (see ParquetFiles), in their order, and their file system.

    Raises:
        UserError: a location is empty, holds nothing, holds a link to nothing, or lies on another file system.
        OutageError: the store does not answer.
    """
    found = [patience(functools.partial(_find, location, root), join(root, location)) for location in locations]
    filesystem = found[0][0] if found else fs.LocalFileSystem()
    for location, (other, _) in zip(locations, found, strict=True):
        if not other.equals(filesystem):
            raise UserError(f"{location} is on another file system than {locations[0]}; a split's files lie on one")
    return filesystem, [file for _, files in found for file in files]


def on_store(location: str, root: str) -> bool:
    """Whether a location (see ParquetFiles) is read from elsewhere than a path on this machine."""
    lake = lake_location(location)
    place = join(root, lake[0] if lake else location)
    return "://" in place and not place.startswith("file:")


def _find(location: str, root: str) -> tuple[fs.FileSystem, list[str]]:
    """The file system and the files in it, sorted."""
    if not location.strip():
        raise UserError(
            f"an empty path ({location!r}) would read everything below {root!r}; name a file, folder or glob"
        )
    if lake := lake_location(location):
        table, format, query = lake
        files = pinned_files(location, join(root, table), format, query)
        return filesystem_of(files[0])[0], [filesystem_of(file)[1] for file in files]
    filesystem, path = filesystem_of(join(root, location))
    _refuse_undecodable(path)
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        if files := _files_at(filesystem, path):
            return filesystem, files
        others = [each.rpartition("/")[2] for each in _listed(filesystem, parent or "/", recursive=False)]
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and is_outage(error):
            raise
        raise UserError(f"{path}: cannot be listed: {error}") from error
    names = sorted(each for each in others if each.isprintable())
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    there = ", ".join(names[:_NAMES]) + (", …" if len(names) > _NAMES else "")
    raise UserError(
        f"{path}: no Parquet file is there{hint}; name a file, a folder with .parquet files or a glob "
        f"(in '{parent or '/'}' there is: {there or 'nothing'}){_rule(location, root)}"
    )


def _rule(location: str, root: str) -> str:
    """Where a relative location starts, in words."""
    if "://" in root or join("/", location) == location or Path(root).is_absolute():
        return ""
    return (
        f"; '{location}' starts at the schema's root '{root}', and that at the current folder {Path.cwd()}: run the "
        "command where root lies, or make root an absolute path"
    )


def folder_above(filesystem: fs.FileSystem, path: str) -> str:
    """The part of a path before the first glob, which is one if no folder is called so."""
    parts = path.rstrip("/").split("/")
    for i, part in enumerate(parts):
        above = "/".join(parts[: i + 1])
        if any(sign in part for sign in "*?[") and filesystem.get_file_info(above).type != fs.FileType.Directory:
            return "/".join(parts[:i])
    return "/".join(parts)


def _files_at(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The file itself, the .parquet files below a folder, or what a glob matches; `_SUCCESS` and the like left out."""
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.File:
        return [path]
    base = folder_above(filesystem, path)
    fixed = base.count("/") + 1
    pattern = path.rstrip("/").split("/")[fixed:]
    if kind == fs.FileType.NotFound:
        _refuse_dangling(path)
    files = []
    listed = list(_listed(filesystem, base or "/", recursive=True))
    refuse_table_folder(filesystem, base, listed)
    for file in listed:
        below = file.split("/")[fixed:]
        wanted = _matches(below, pattern) or _matches(below, [*pattern, "**", "*.parquet"])
        if wanted and not any(_hidden(part) for part in below):
            _refuse_undecodable(file)
            _refuse_irregular(filesystem, file)
            files.append(file)
    return sorted(files)


def _hidden(name: str) -> bool:
    """Whether Spark and the like mean no data by this name; `_region=eu` is a partition."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _listed(filesystem: fs.FileSystem, folder: str, *, recursive: bool) -> Iterator[str]:
    """What is in a folder: the files at any depth, or with `recursive=False` all names; local links are followed."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        for info in filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive)):
            if info.type == fs.FileType.File or not recursive:
                yield info.path
        return
    # PyArrow leaves out links to nothing, follows links in a circle, and fails over names that are not UTF-8
    walked: set[Path] = set()
    for at, folders, files in os.walk(folder, followlinks=True, onerror=_unless_missing):
        if (real := Path(at).resolve()) in walked:
            raise UserError(f"{at}: a link leads to {real} a second time; its files would be read many times")
        walked.add(real)
        for name in files if recursive else [*folders, *files]:
            yield os.path.join(at, name)
        if not recursive:
            return
        for name in folders:
            link = Path(at, name)
            if link.is_symlink() and Path(at).resolve().is_relative_to(link.resolve()):
                raise UserError(f"{link}: links to a folder that it lies in; its files would be read many times")


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _refuse_irregular(filesystem: fs.FileSystem, path: str) -> None:
    if isinstance(filesystem, fs.LocalFileSystem) and not Path(path).is_file():
        _refuse_dangling(path)
        raise UserError(f"{path}: is no regular file; move it away")


def _refuse_dangling(path: str) -> None:
    if Path(path).is_symlink():
        raise UserError(f"{path}: links to {os.readlink(path)!r}, where no file is; correct or remove the link")


def _refuse_undecodable(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it") from None


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path matches a glob, folder by folder; `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
