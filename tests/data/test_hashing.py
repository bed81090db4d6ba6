"""XXH64 against values of the reference implementation (python-xxhash 3, seed 0)."""

from __future__ import annotations

import numpy as np
import pytest

from torchrec_xd.data.hashing import hash_bytes, hash_integers

STRINGS = {
    b"": 0xEF46DB3751D8E999,
    b"a": 0xD24EC4F1A98C6E5B,
    b"abc": 0x44BC2CF5AD770999,
    b"store": 0xDEBFA3A4D9E2B00A,
    b"grocery": 0xC59F19C2C8C696A2,
    "Müsli".encode(): 0xF31911FFAA913A1B,
    b"Kroger store 42": 0x0E72DC756A178B5F,
    b"the quick brown fox jumps over": 0xD5F8A61C81CFB084,
    bytes(range(32)): 0xCBF59C5116FF32B4,
    b"the quick brown fox jumps over the lazy dog, twice or thrice a day": 0x36E3F29692999B75,
}
INTEGERS = {
    0: 0x34C96ACDCADB1BBB,
    1: 0x9F29CB17A2A49995,
    -1: 0x85D136ADB773C6C9,
    2**63 - 1: 0xFF70CC60366E770C,
    -(2**63): 0x3F425EACF01544E0,
    123456789: 0xCB7C2941B198004D,
}


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
