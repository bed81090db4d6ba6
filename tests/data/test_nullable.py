"""Labels that may be null, from the files to the batch: where they may, and what is said where they may not."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.data_tables import rows_of, schema_of
from tests.support.feeds import schema_at, write_feed
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.findings import training_findings
from torchrec_xd.schema import Schema

TASKS = [{"label": "click", "domain": "a", "nullable": True}, {"label": "buy", "domain": "b"}]


def labels(values):
    schema = schema_of({"column": "price", "kind": "dense"}, tasks=TASKS)
    count = len(values)
    return rows_of(schema, pa.table({"price": [0.5] * count, "user": [1] * count, "click": values}), "a").label_BT[:, 0]


@pytest.mark.parametrize(
    "values", [[0, None, 1], [False, None, True], [0.0, None, 1.0], pa.array([0, None, 1], pa.uint8())]
)
def test_null_is_no_label(values):
    np.testing.assert_array_equal(labels(values), [0, np.nan, 1])


def test_a_column_of_nothing_but_null():
    assert np.isnan(labels(pa.nulls(2))).all()


def test_not_a_number_is_no_null():
    with pytest.raises(UserError, match="row 101, column 'click': nan is no label; labels are 0 or 1: correct or drop"):
        labels(pa.array([1.0, float("nan"), None], from_pandas=False))
    with pytest.raises(UserError, match="row 101, column 'click': 2 is no label"):
        labels([None, 2])


def feed(folder, value, **task):
    """A feed with one label in ten null, or another value, in the target's train rows."""
    content = schema_at(write_feed(folder))
    content["tasks"] = [*content["tasks"][:2], {"label": "click", "domain": "post", **task}]
    path = folder / "post" / "train.parquet"
    table = pq.read_table(path)
    label = [value if i % 10 == 3 else old for i, old in enumerate(table["click"].to_pylist())]
    table = table.set_column(table.column_names.index("click"), "click", pa.array(label, pa.int8()))
    pq.write_table(table, path, row_group_size=64)
    return Schema.model_validate(content), np.array([np.nan if v is None else v for v in label])


def test_an_error_names_file_row_column_rule_and_remedy_before_training(tmp_path):
    schema, _ = feed(tmp_path, None)
    with pytest.raises(
        UserError,
        match=r"post/train.parquet: row 3, column 'click': None is no label; labels are 0 or 1: correct or drop the "
        r"row, or set 'nullable: true' for the task: then the row does not count in it$",
    ):
        Loader(schema, LoaderSettings(), "train")


def test_rows_with_the_label_are_counted(tmp_path):
    schema, label = feed(tmp_path, None, nullable=True)
    loader = Loader(schema, LoaderSettings(batch_size=100), "train")
    read = [batch.label_BT[batch.rows(2), 2].numpy() for batch in loader.batches()]
    assert np.isnan(np.concatenate(read)).sum() == 40
    assert loader.label_counts()["click@post"] == (360, np.nansum(label))
    assert loader.label_counts()["click@items"][0] == 800


def test_what_training_finds_of_labels():
    counts = {"a": (10, 3), "b": (0, 0), "c": (4, 0), "d": (1234, 1234)}
    assert training_findings(counts) == [
        "task b: no training row that was read has its label: it learnt nothing",
        "task c: all 4 training rows that were read are negative: there is nothing to tell apart",
        "task d: all 1,234 training rows that were read are positive: there is nothing to tell apart",
    ]
    assert training_findings({"a": (0, 0), "b": (0, 0)}) == []  # a finished run, resumed
