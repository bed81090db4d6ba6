"""Values of a JSON column to an Arrow array of the type that a schema asks for; nothing is cut or guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from torchrec_xd.data.column_types import is_list, is_string
from torchrec_xd.data.weights import as_lists
from torchrec_xd.errors import UserError

_INT64 = range(-(2**63), 2**63)
_SHOWN = 60


def request_type(kind: pa.DataType) -> pa.DataType:
    """The type of a request's values for a column of files: without dictionaries and widths."""
    if pa.types.is_dictionary(kind):
        return request_type(kind.value_type)
    if pa.types.is_map(kind):
        kind = as_lists(pa.array([], kind)).type
    if is_list(kind):
        return pa.list_(request_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, request_type(kind.field(i).type)) for i in range(kind.num_fields)])
    if is_string(kind):
        return pa.string()
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pa.int64()
    return pa.float64()


def arrow_values(values: Sequence[Any], kind: pa.DataType, place: str, column: str) -> pa.Array:
    """Values as an array.

    Args:
        values: one for each row; None is null.
        kind: from `request_type`.
        place: of the column, for messages.
        column: its name.

    Raises:
        UserError: names row, column, value and what it should be.
    """
    found = _as_they_are(values)
    if found is not None and _holds(kind, found.type):
        return found if found.type == kind else found.cast(kind, safe=False)  # integers beyond 2**53 are rounded
    wrong = next((row for row, value in enumerate(values) if not _fits(value, kind)), None)
    if wrong is None:  # numbers next to truth values, or integers that only a float holds
        return pa.array([_plain(value, kind) for value in values], kind)
    text = repr(values[wrong])
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    raise UserError(f"{place}: row {wrong}, column '{column}': {shown} is not {_words(kind)}")


def _as_they_are(values: Sequence[Any]) -> pa.Array | None:
    """Of the type that they have; None if it is not one. Of a type that is given, Arrow would cut 1.5 to 1."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        return None


def _holds(kind: pa.DataType, given: pa.DataType) -> bool:
    if pa.types.is_null(given) or kind == given:
        return True
    if is_list(kind):
        return is_list(given) and _holds(kind.value_type, given.value_type)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return (
            bool(pa.types.is_struct(given))
            and [f.name for f in given] == names
            and all(_holds(mine.type, theirs.type) for mine, theirs in zip(kind, given, strict=True))
        )
    if pa.types.is_floating(kind):
        return bool(pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_boolean(given))
    return False


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether one value is of a type: looked at only when a column is not."""
    if value is None:
        return True
    if is_list(kind):
        return isinstance(value, list) and all(_fits(each, kind.value_type) for each in value)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return isinstance(value, dict) and list(value) == names and all(_fits(value[f.name], f.type) for f in kind)
    if pa.types.is_string(kind):
        return isinstance(value, str) and _is_text(value)
    if pa.types.is_floating(kind):
        return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**1023)
    return isinstance(value, int) and not isinstance(value, bool) and value in _INT64


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value that is of a type, with all its numbers as floats where the type has floats."""
    if value is None:
        return None
    if is_list(kind):
        return [_plain(each, kind.value_type) for each in value]
    if pa.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    return float(value) if pa.types.is_floating(kind) else value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeError:
        return False
    return True


def _words(kind: pa.DataType) -> str:
    if is_list(kind):
        word = _words(kind.value_type).partition(" ")[2]
        return f"a list of {word.replace(' ', 's ', 1) if ' ' in word else word + 's'}"
    if pa.types.is_struct(kind):
        return f"an object of {' and '.join(field.name for field in kind)}"
    if pa.types.is_string(kind):
        return "a text"
    return "a number" if pa.types.is_floating(kind) else "an integer of 64 bits"
