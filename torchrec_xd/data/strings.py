"""Arrow columns of strings -> hashes, and users of strings -> numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_xd.data.column_types import is_string
from torchrec_xd.data.hashing import Hashes, hash_bytes
from torchrec_xd.data.rows import Integers


def string_hashes(values: pa.Array) -> tuple[Integers, Hashes]:
    """Of strings without nulls, dictionary-encoded or not: the index of each among the distinct ones, whose XXH64."""
    if is_string(values.type):
        values = values.cast(pa.large_binary()).dictionary_encode()  # one layout of bytes; Arrow encodes no views
    strings = values.dictionary.cast(pa.large_binary())
    _, offsets, data = strings.buffers()
    first, last = strings.offset, strings.offset + len(strings) + 1
    hashes = hash_bytes(np.frombuffer(data or b"", dtype=np.uint8), np.frombuffer(offsets, dtype=np.int64)[first:last])
    return values.indices.to_numpy().astype(np.int64), hashes


def user_numbers(values: pa.Array) -> NDArray[np.int64]:
    """Users of strings as non-negative int64: the upper 63 bits of their XXH64.

    Two of n users share a number with a probability of about n^2 / 2^64: 1 in 18 million for a million users, 5 % for a
    billion. Such a pair counts as one user in GAUC and in the bootstrap; nothing else reads these numbers.
    """
    indices, hashes = string_hashes(values)
    numbers: NDArray[np.int64] = (hashes >> np.uint64(1)).astype(np.int64)[indices]
    return numbers
