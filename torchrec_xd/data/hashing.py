"""XXH64 over many keys at once (https://github.com/Cyan4973/xxHash, XXH64 with seed 0): the same on every platform.

An integer is hashed as its 8 bytes in two's complement, little endian, whatever its width in the file; a string as its
UTF-8 bytes. Keys of one length form a matrix of bytes, so the loops below run over the bytes of a key, never over keys.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
)


def hash_integers(values: NDArray[np.int64] | NDArray[np.uint64]) -> Hashes:
    """XXH64 of each integer [n] -> [n]."""
    return _xxh64(values.astype("<i8").view(np.uint8).reshape(-1, 8))


def hash_bytes(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Hashes:
    """XXH64 of each string; string i is `data[offsets[i]:offsets[i + 1]]`, so `offsets` has n + 1 entries."""
    lengths = np.diff(offsets)
    hashes = np.empty(len(lengths), dtype=np.uint64)
    by_length = np.argsort(lengths, kind="stable")
    borders = np.flatnonzero(np.diff(lengths[by_length])) + 1
    for same in np.split(by_length, borders) if len(lengths) else ():
        length = int(lengths[same[0]])
        hashes[same] = _xxh64(sliding_window_view(data, length)[offsets[same]])
    return hashes


def _xxh64(keys: NDArray[np.uint8]) -> Hashes:
    """XXH64 of n keys of equal length [n, length] -> [n]."""
    count, length = keys.shape
    stripes, eights, fours = length // 32 * 32, length // 8 * 8, length // 4 * 4
    hashes = _stripes(keys[:, :stripes]) if stripes else np.full(count, _P5)
    hashes = hashes + np.uint64(length)
    for at in range(stripes, eights, 8):
        hashes = _rotate(hashes ^ _round(np.zeros_like(hashes), _words(keys, at, 8)), 27) * _P1 + _P4
    if fours > eights:
        hashes = _rotate(hashes ^ (_words(keys, eights, 4) * _P1), 23) * _P2 + _P3
    for at in range(fours, length):
        hashes = _rotate(hashes ^ (_words(keys, at, 1) * _P5), 11) * _P1
    hashes = (hashes ^ (hashes >> np.uint64(33))) * _P2
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _P3
    mixed: Hashes = hashes ^ (hashes >> np.uint64(32))
    return mixed


def _stripes(keys: NDArray[np.uint8]) -> Hashes:
    """The four accumulators over whole stripes of 32 bytes, merged."""
    zero = np.zeros(len(keys), dtype=np.uint64)
    lanes = [zero + _P1 + _P2, zero + _P2, zero, zero - _P1]
    for stripe in range(0, keys.shape[1], 32):
        lanes = [_round(lane, _words(keys, stripe + 8 * i, 8)) for i, lane in enumerate(lanes)]
    hashes = _rotate(lanes[0], 1) + _rotate(lanes[1], 7) + _rotate(lanes[2], 12) + _rotate(lanes[3], 18)
    for lane in lanes:
        hashes = (hashes ^ _round(zero, lane)) * _P1 + _P4
    return hashes


def _round(accumulator: Hashes, word: Hashes) -> Hashes:
    result: Hashes = _rotate(accumulator + word * _P2, 31) * _P1
    return result


def _rotate(hashes: Hashes, bits: int) -> Hashes:
    rotated: Hashes = (hashes << np.uint64(bits)) | (hashes >> np.uint64(64 - bits))
    return rotated


def _words(keys: NDArray[np.uint8], at: int, width: int) -> Hashes:
    """The little-endian word of `width` bytes that begins at byte `at` of every key."""
    words: Hashes = np.ascontiguousarray(keys[:, at : at + width]).view(f"<u{width}")[:, 0].astype(np.uint64)
    return words
