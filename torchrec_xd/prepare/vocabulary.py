"""Vocabularies: which value has which embedding row. Made from what training saw; row 0 is everything else."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table


def vocabulary(seen: Table, column: str) -> Table:
    """Rows (value, row) of the values of a column: the most frequent has row 1, ties go to the smaller value."""
    counts = seen.filter(seen[column].notnull()).group_by(value=seen[column]).agg(count=_.count())
    place = ibis.row_number().over(order_by=[counts["count"].desc(), counts.value])
    return counts.select("value", row=(place + 1).cast("int32"))


def encode(table: Table, vocabularies: dict[str, Table], **columns: str) -> Table:
    """`table` plus embedding rows: new column = column of `table`, by the vocabulary of the same new name."""
    for name, column in columns.items():
        words = vocabularies[name].select(_value=_.value, _row=_.row)
        table = table.left_join(words, table[column] == words._value)
        table = table.mutate(**{name: _._row.fill_null(0)}).drop("_value", "_row")
    return table
