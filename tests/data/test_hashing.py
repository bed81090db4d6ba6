"""XXH64 against values of the reference implementation (python-xxhash 3, seed 0)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.xxhash_values import INTEGERS, STRINGS
from torchrec_xd.data.hashing import hash_bytes, hash_integers


def hashed(strings: list[bytes]) -> list[int]:
    offsets = np.cumsum([0, *(len(string) for string in strings)])
    hashes: list[int] = hash_bytes(np.frombuffer(b"".join(strings), dtype=np.uint8), offsets).tolist()
    return hashes


@pytest.mark.parametrize(("string", "expected"), STRINGS.items())
def test_a_string(string: bytes, expected: int) -> None:
    assert hashed([string]) == [expected]


def test_many_strings_of_mixed_lengths() -> None:
    order = np.random.default_rng(0).integers(0, len(STRINGS), 200)
    strings = [list(STRINGS)[i] for i in order]
    assert hashed(strings) == [STRINGS[string] for string in strings]
    assert hashed([]) == []


def test_integers() -> None:
    assert hash_integers(np.array(list(INTEGERS))).tolist() == list(INTEGERS.values())
    assert hash_integers(np.array([2**64 - 1], dtype=np.uint64)).tolist() == [INTEGERS[-1]]  # the same eight bytes
    assert hash_integers(np.zeros(0, dtype=np.int64)).tolist() == []
