"""Which types a column may have, and what is said where it has another."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import pyarrow as pa

from torchrec_xd.feature import Feature

_NAMES = 30
"""Columns that a message lists."""


def presence_fault(column: str, names: list[str]) -> str:
    """What is wrong with the presence of a column among `names`; empty where nothing is."""
    count = names.count(column)
    if count == 1:
        return ""
    if count > 1:
        return f"column '{column}' is there {count} times; rename or drop one"
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = ", …" if len(names) > _NAMES else ""
    return f"no column '{column}'; {hint}Columns there: {', '.join(names[:_NAMES])}{more}"


def type_faults(found: pa.Schema, column: str | None, allowed: Callable[[pa.DataType], bool], rule: str) -> list[str]:
    """The fault, if the column is there and of a type that is not allowed."""
    if column is None or found.names.count(column) != 1 or allowed(found.field(column).type):
        return []
    return [f"column '{column}' has type {found.field(column).type}; {rule}"]


def expectation(feature: Feature) -> tuple[Callable[[pa.DataType], bool], str]:
    """Which types a feature may have, and the rule in words."""
    if feature.kind == "dense":
        return is_number, "a dense feature is a boolean or number column"
    if feature.kind == "vector":
        return (
            lambda kind: is_vector(kind, feature),
            f"a vector holds a list of {feature.length} numbers per row (its 'length'), of type float16, float32 or "
            "float64",
        )
    remedy = "" if _takes_strings(feature) else "; string ids need 'hash: xxhash' in the schema, or a 'vocabulary'"
    if feature.kind == "id":
        return lambda kind: is_key(kind, feature), f"a feature of kind 'id' holds one integer per row{remedy}"
    if feature.weights == feature.column:
        return (
            lambda kind: is_pairs(kind, feature),
            "a bag that is its own 'weights' holds a list of pairs (structs of two) or a map per row, of an integer "
            f"and a number{remedy}",
        )
    return (
        lambda kind: pa.types.is_null(kind) or (is_list(kind) and is_key(kind.value_type, feature)),
        f"a feature of kind '{feature.kind}' holds a list of integers per row{remedy}",
    )


def is_integer_or_boolean(kind: pa.DataType) -> bool:
    """Whether a type holds integers or truth values."""
    return is_integer(kind) or pa.types.is_boolean(kind)


def is_integer_or_string(kind: pa.DataType) -> bool:
    """Whether a type holds integers or strings, the latter dictionary-encoded or not."""
    return is_integer(kind) or holds_strings(kind)


def is_integer(kind: pa.DataType) -> bool:
    """Whether a type holds integers, or nothing at all."""
    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a type holds numbers or truth values."""
    return bool(
        is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    )


def is_string(kind: pa.DataType) -> bool:
    """Whether a type holds text or bytes."""
    views = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    return bool(views or pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind))


def holds_strings(kind: pa.DataType) -> bool:
    """Whether a type holds text or bytes, dictionary-encoded or not."""
    return is_string(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a type holds lists."""
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(views or pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_vector(kind: pa.DataType, feature: Feature) -> bool:
    """Whether a type holds lists of floating-point numbers, of the feature's length where it fixes one; or nothing."""
    if pa.types.is_fixed_size_list(kind) and kind.list_size != feature.length:
        return False
    return bool(pa.types.is_null(kind) or (is_list(kind) and pa.types.is_floating(kind.value_type)))


def is_pairs(kind: pa.DataType, feature: Feature) -> bool:
    """Whether a type holds lists of ids with a weight each, or nothing at all."""
    if pa.types.is_map(kind):
        return is_key(kind.key_type, feature) and is_number(kind.item_type)
    pair = kind.value_type if is_list(kind) else None
    if pair is None or not pa.types.is_struct(pair) or pair.num_fields != 2:
        return bool(pa.types.is_null(kind))
    return is_key(pair.field(0).type, feature) and is_number(pair.field(1).type)


def is_numbers(kind: pa.DataType) -> bool:
    """Whether a type holds lists of numbers, or nothing at all."""
    return bool(pa.types.is_null(kind) or (is_list(kind) and is_number(kind.value_type)))


def is_key(kind: pa.DataType, feature: Feature) -> bool:
    """Whether ids of this type can be looked up."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_integer(kind) or (_takes_strings(feature) and is_string(kind))


def _takes_strings(feature: Feature) -> bool:
    return feature.hash == "xxhash" or feature.vocabulary is not None
