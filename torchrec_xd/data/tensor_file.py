"""Safetensors files as NumPy arrays: mapped, not read."""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.errors import UserError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_MAX_HEADER = 100_000_000
"""Bytes: what the format allows."""


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file, which stays on disk."""

    pages: mmap.mmap
    arrays: dict[str, NDArray[Any]]
    """By name, views of the pages."""
    begins: dict[str, int]
    """Where each one begins, in bytes."""
    header: bytes
    """All in front of the arrays."""

    @staticmethod
    def open(path: Path) -> TensorFile:
        """Map a file.

        Raises:
            UserError: it is damaged.
        """
        try:
            with path.open("rb") as stream:
                pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(pages[:8], "little")
            if not 2 <= size <= min(_MAX_HEADER, len(pages) - 8):
                raise ValueError(f"a header of {size} bytes in a file of {len(pages)}")
            header = pages[: 8 + size]
            entries = tensor_entries(header)
            arrays = {name: tensor_view(pages, len(header), entry) for name, entry in entries.items()}
            begins = {name: len(header) + int(entry["data_offsets"][0]) for name, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); export again") from None
        return TensorFile(pages, arrays, begins, header)


def tensor_entries(header: bytes) -> dict[str, Any]:
    """What a header says of each tensor: `dtype`, `shape` and `data_offsets`, behind the header.

    Raises:
        ValueError: it is no header.
    """
    found: dict[str, Any] = json.loads(header[8:])
    found.pop("__metadata__", None)
    return found


def tensor_view(pages: Any, begin: int, entry: Any) -> NDArray[Any]:
    """A tensor of a file whose header ends at `begin`.

    Raises:
        ValueError: it does not lie in the file.
        KeyError: of an unknown type, or an entry that lacks something.
    """
    dtype, shape = _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
    start, stop = map(int, entry["data_offsets"])
    count = math.prod(shape)
    if not 0 <= start <= stop <= len(pages) - begin or stop - start != count * dtype.itemsize:
        raise ValueError(f"{shape} of {dtype} does not lie at {start} to {stop}")
    whole: NDArray[Any] = np.frombuffer(pages, dtype, count, begin + start)
    return whole.reshape(shape)
