"""Vocabularies: which value has which embedding row. Made from what training saw; row 0 is everything else."""

from __future__ import annotations

import ibis
from ibis import _
from ibis.expr.types import Table

Vocabularies = dict[str, Table]
"""By the name of the column that they encode."""


def vocabulary(seen: Table, column: str) -> Table:
    """Rows (value, row) of a column's values: the most frequent has row 1, ties go to the smaller value."""
    counts = seen.filter(seen[column].notnull()).group_by(value=seen[column]).agg(times=_.count())
    place = ibis.row_number().over(order_by=[counts.times.desc(), counts.value])
    return counts.select("value", row=(place + 1).cast("int32")).cache()


def encode(table: Table, vocabularies: Vocabularies, **columns: str) -> Table:
    """`table` plus embedding rows: new column = column of `table` (may be the same), by the new name's vocabulary."""
    for name, column in columns.items():
        words = vocabularies[name].select(_value="value", _row="row")
        table = table.left_join(words, table[column] == words._value)
        table = table.mutate(**{name: table._row.fill_null(0)}).drop("_value", "_row")
    return table
