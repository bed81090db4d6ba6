"""File systems of locations: local, one that PyArrow knows, else one that fsspec knows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from pyarrow import fs

from torchrec_xd.data.outages import is_outage
from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import without_secrets

_ARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""PyArrow's own; options in a location of theirs are for it, while fsspec would read them as part of the path."""


def join(root: str, location: str) -> str:
    """A location, a relative one below `root`."""
    if "://" in location or Path(location).is_absolute():
        return location
    if "://" not in root:
        return str(Path(root, location))
    folder, question, query = root.partition("?")
    return f"{folder.rstrip('/')}/{location}{question}{query}"


def filesystem_of(location: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it: local, one that PyArrow knows, else one that fsspec knows."""
    scheme, is_uri, rest = location.partition("://")
    if not is_uri:
        return fs.LocalFileSystem(), str(Path(location).absolute())
    without_secrets(location)
    rest, question, query = rest.partition("?")
    host, _, path = rest.partition("/")
    try:
        filesystem, base = fs.FileSystem.from_uri(f"{scheme}://{host}/{question}{query}")
        return filesystem, f"{base.rstrip('/')}/{path}"
    except (ValueError, NotImplementedError, ImportError) as error:  # unknown, not built in, a package is missing
        if query and isinstance(error, pa.ArrowInvalid) and scheme in _ARROW_SCHEMES:
            raise UserError(f"{location}: {error}; correct what follows the question mark") from error
        return _fsspec(scheme, location, error)
    except OSError as error:
        if is_outage(error):  # S3: where the region is not named, the store is asked for it
            raise
        raise UserError(f"{location}: the file system cannot be reached: {error}") from error


def _fsspec(scheme: str, location: str, refusal: Exception) -> tuple[fs.FileSystem, str]:
    """What fsspec makes of a location that PyArrow has refused; if nothing, the error tells both reasons."""
    try:
        filesystem, path = url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{location}: neither PyArrow ({refusal}) nor fsspec ({error}) can open a file system '{scheme}'; "
            "install its package, or use a local path"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
