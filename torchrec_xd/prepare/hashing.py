"""Pseudo-random numbers that depend on keys and seed alone, by integer arithmetic that every engine does alike."""

from __future__ import annotations

from collections.abc import Sequence

import ibis
from ibis.expr.types import IntegerValue, Table

_PRIME = 2**31 - 1


def stable_hash(table: Table, columns: list[str], seed: int) -> IntegerValue:
    """A hash in [0, 2**31 - 1) of columns of integers in [0, 2**62)."""
    return hash_of([table[column] for column in columns], seed)


def mix_of(values: Sequence[IntegerValue]) -> IntegerValue:
    """A cheap mix in [0, 2**31 - 1) of many integers in [0, 2**62): each is multiplied and added.

    The expression grows with the number of values; that of `hash_of` doubles with each, which is for few.
    """
    mixed, factor = ibis.literal(0, "int64"), 1
    for value in values:
        factor = factor * 48_271 % _PRIME
        mixed = mixed + value.cast("int64") % _PRIME * factor % _PRIME
    return mixed % _PRIME


def hash_of(values: Sequence[IntegerValue], seed: int) -> IntegerValue:
    """The same of any integer expressions."""
    # Neighbouring seeds begin far apart: else one seed's hashes would be the next one's, shifted by one key.
    mixed = ibis.literal(seed * 742_938_285 % _PRIME, "int64")
    for value in values:
        mixed = (mixed + value.cast("int64")) % _PRIME * 48_271 % _PRIME
        mixed = mixed ^ (mixed >> 15)
    return mixed * 69_621 % _PRIME
