"""Sequences that are columns of the same events: positions stay aligned, whatever is null or cut."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tests.support.data_tables import ROWS, row_lists, rows_of, schema_of
from torchrec_xd.batch import LoaderState
from torchrec_xd.data.collate import Collator
from torchrec_xd.errors import UserError

ITEM, ACTION = (
    {"column": column, "kind": "sequence", "rows": ROWS, "length": 2, "events": "past"} for column in ("item", "action")
)


def ids(*features: dict, **columns: pa.Array) -> dict[str, list[list[int]]]:
    """Column to the ids of every row, as they stand in a batch."""
    schema, count = schema_of(*features), len(next(iter(columns.values())))
    table = pa.table({**columns, "user": [1] * count, "click": [0] * count})
    return row_lists(Collator(schema, 0)([[rows_of(schema, table, "a")], []], LoaderState(0, 1)).sequences)


def test_both_columns_keep_the_same_last_events() -> None:
    found = ids(ITEM, ACTION, item=pa.array([[1, 2, 3], None, [], [4]]), action=pa.array([[7, 8, 9], [], None, [5]]))
    assert found == {"item": [[2, 3], [], [], [4]], "action": [[8, 9], [], [], [5]]}


@pytest.mark.parametrize("hashed", ["none", "drop", "mod"])
def test_a_null_or_an_id_that_is_left_out_is_row_0_and_keeps_its_place(hashed: str) -> None:
    outside = {"drop": 0, "mod": 1}.get(hashed, ROWS - 1)
    given = pa.array([[1, None, ROWS + 1 if hashed != "none" else ROWS - 1], [None]])
    found = ids({**ITEM, "hash": hashed}, ACTION, item=given, action=pa.array([[1, 2, 3], [4]]))
    assert found == {"item": [[0, outside], [0]], "action": [[2, 3], [4]]}


def test_strings_keep_their_places_too() -> None:
    hashed = {**ITEM, "hash": "xxhash"}
    whole = ids(hashed, ACTION, item=pa.array([["a", "b"]]), action=pa.array([[1, 2]]))["item"]
    holed = ids(hashed, ACTION, item=pa.array([[None, "b"]]), action=pa.array([[1, 2]]))["item"]
    assert holed == [[0, whole[0][1]]]
    assert whole[0][0] != 0


def test_without_events_nulls_are_dropped_as_before() -> None:
    alone = {key: value for key, value in ITEM.items() if key != "events"}
    assert ids(alone, item=pa.array([[1, None, 3]])) == {"item": [[1, 3]]}


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (
            [[1, 2], [3, 4]],
            "f.parquet: row 101, column 'action': 2 is how many ids this row has here, and 1 in 'item':",
        ),
        ([[1, 2], None], "row 101, column 'action': 0 is how many ids this row has here"),
        ([[1], [3]], "both are columns of the events 'past', so make them equally long"),
    ],
)
def test_rows_of_unequal_lengths_are_named(action: list, said: str) -> None:
    with pytest.raises(UserError) as error:
        ids(ITEM, ACTION, item=pa.array([[1, 2], [3]]), action=pa.array(action))
    assert said in str(error.value)


def test_an_id_outside_its_table_is_told_with_its_row() -> None:
    with pytest.raises(UserError, match=rf"row 101, column 'item': {ROWS} lies outside"):
        ids(ITEM, ACTION, item=pa.array([[None, 1], [None, ROWS]]), action=pa.array([[1, 2], [3, 4]]))
