"""Embedding tables as NumPy arrays, memory-mapped where they lie in a file: lookups and pooling without torch.

Shape legend: B rows, N ids of all rows, D width, L positions.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.data.rows import Floats, Jagged
from torchrec_xd.data.tensor_file import TensorFile
from torchrec_xd.errors import UserError
from torchrec_xd.serving.artifact import TableEntry


@dataclass(frozen=True)
class Stack:
    """Several tables as one, so that one gather serves them all."""

    rows_ND: Floats
    """The file from the first of them on, in rows of their width."""
    first: Mapping[str, int]
    """Table to its first row there."""


class Tables:
    """Tables by name, looked up by row.

    Args:
        entries: what each of them is.
        arrays: its rows `[rows, D]`; of int8 also `NAME/scale` and `NAME/offset` `[rows]`.
        stacks: of those tables that lie in one file.

    Raises:
        UserError: an array is missing or of another size.
    """

    def __init__(
        self, entries: Mapping[str, TableEntry], arrays: Mapping[str, NDArray[Any]], stacks: tuple[Stack, ...] = ()
    ) -> None:
        self._entries, self._arrays, self.stacks = dict(entries), dict(arrays), stacks
        for name, entry in self._entries.items():
            expected: dict[str, tuple[int, ...]] = {name: (entry.rows, entry.dim)}
            if entry.dtype == "int8":
                expected |= {f"{name}/scale": (entry.rows,), f"{name}/offset": (entry.rows,)}
            for part, shape in expected.items():
                found = None if part not in self._arrays else self._arrays[part].shape
                if found != shape:
                    raise UserError(f"tables: '{part}' has shape {found}, the manifest says {shape}; export again")

    @staticmethod
    def open(path: Path, entries: Mapping[str, TableEntry]) -> Tables:
        """The tables of a safetensors file, which stays on disk: pages are read when rows of theirs are looked up.

        Raises:
            UserError: the file is damaged, or does not hold these tables.
        """
        file = TensorFile.open(path)
        return Tables(entries, file.arrays, _stacks(file.pages, file.begins, entries))

    def rows(self, name: str, ids: NDArray[Any]) -> Floats:
        """Rows of a table in float32, `[N] -> [N, D]`."""
        entry, array = self._entries[name], self._arrays[name]
        found = np.take(array, ids, axis=0)
        if entry.dtype == "fp32":
            return found
        wide: Floats = found.astype(np.float32)
        if entry.dtype == "int8":
            scale_N, offset_N = (
                np.take(self._arrays[f"{name}/{part}"], ids).astype(np.float32) for part in ("scale", "offset")
            )
            wide *= (scale_N * np.float32(entry.unit / 255))[:, None]
            wide += (offset_N * np.float32(entry.unit))[:, None]
        return wide

    def pooled(self, name: str, ids: Jagged) -> Floats:
        """One vector a row, `[B, D]`: the sum or mean of its ids' vectors, each times its weight; zero without ids."""
        if ids.offsets is None and ids.weights is None:
            return self.rows(name, ids.values)
        entry, lengths = self._entries[name], ids.lengths
        vector_BD = np.zeros((len(lengths), entry.dim), dtype=np.float32)
        filled = lengths > 0
        if not filled.any():
            return vector_BD
        each_ND = self.rows(name, ids.values)
        if ids.weights is not None:
            each_ND *= ids.weights[:, None]
        ends = np.cumsum(lengths)
        vector_BD[filled] = np.add.reduceat(each_ND, (ends - lengths)[filled], axis=0)
        if entry.pooling == "mean":
            vector_BD[filled] /= lengths[filled, None].astype(np.float32)
        return vector_BD

    def padded(self, name: str, ids: Jagged, length: int) -> Floats:
        """The vectors of each row's ids in their order, zeros behind them, `[B, L, D]`."""
        lengths = ids.lengths
        vector_BLD = np.zeros((len(lengths), length, self._entries[name].dim), dtype=np.float32)
        if len(ids.values):
            row = np.repeat(np.arange(len(lengths)), lengths)
            first = np.cumsum(lengths) - lengths
            vector_BLD[row, np.arange(len(row)) - first[row]] = self.rows(name, ids.values)
        return vector_BLD


def _stacks(pages: mmap.mmap, begins: Mapping[str, int], entries: Mapping[str, TableEntry]) -> tuple[Stack, ...]:
    """Tables of fp32 by width, as far as they lie whole rows apart."""
    found: dict[tuple[int, int], list[str]] = {}
    for name, entry in entries.items():
        if entry.dtype == "fp32" and name in begins:
            found.setdefault((entry.dim, begins[name] % (4 * entry.dim)), []).append(name)
    stacks = []
    for (dim, _), names in found.items():
        start = min(begins[name] for name in names)
        stop = max(begins[name] + 4 * dim * entries[name].rows for name in names)
        if len(names) > 1 and stop <= len(pages):
            rows_ND = np.frombuffer(pages, np.dtype("<f4"), (stop - start) // 4, start).reshape(-1, dim)
            stacks.append(Stack(rows_ND, {name: (begins[name] - start) // (4 * dim) for name in names}))
    return tuple(stacks)
