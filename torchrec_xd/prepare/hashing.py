"""Pseudo-random numbers that depend on keys and seed alone, by integer arithmetic that every engine does alike."""

from __future__ import annotations

import ibis
from ibis.expr.types import IntegerValue, Table

_PRIME = 2**31 - 1


def stable_hash(table: Table, columns: list[str], seed: int) -> IntegerValue:
    """A hash in [0, 2**31 - 1) of columns of integers in [0, 2**62)."""
    # Neighbouring seeds begin far apart: else one seed's hashes would be the next one's, shifted by one key.
    mixed = ibis.literal(seed * 742_938_285 % _PRIME, "int64")
    for column in columns:
        mixed = (mixed + table[column].cast("int64")) % _PRIME * 48_271 % _PRIME
        mixed = mixed ^ (mixed >> 15)
    return mixed * 69_621 % _PRIME
