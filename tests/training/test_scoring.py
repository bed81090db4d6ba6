"""Scoring rows that training has not seen: new ids, and columns that pass through."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.feeds import ITEMS, schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.errors import UserError
from torchrec_xd.settings import validate
from torchrec_xd.training.inference import predict, score
from torchrec_xd.training.train_run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    content = {
        "schema": schema_at(write_feed(folder / "feed", rows=96)),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "loader": {"batch_size": 7},
        "trainer": {"threads": 1},
    }
    train(validate(RunConfig, content, "test"), folder / "run")
    return folder / "run"


@pytest.fixture
def rows(run):
    return pq.read_table(run.parent / "feed" / "post" / "test.parquet")


def written(tmp_path, *tables):
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=5)
    return tmp_path


def with_column(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_an_id_outside_its_table_counts_as_missing_and_is_told(run, rows, tmp_path, caplog):
    style = rows["style"].to_pylist()
    hist = rows["hist"].to_pylist()
    new = with_column(rows, "style", pa.array([5, -1, *style[2:]], pa.int64()))
    new = with_column(new, "hist", pa.array([[ITEMS, *hist[0]], *hist[1:]], pa.list_(pa.int64())))
    gone = with_column(rows, "style", pa.array([None, None, *style[2:]], pa.int64()))
    (tmp_path / "new").mkdir()
    (tmp_path / "gone").mkdir()
    new_rows, gone_rows = written(tmp_path / "new", new), written(tmp_path / "gone", gone)
    with pytest.raises(UserError, match=r"row 0, column '\w+': \d+ lies outside .*--unseen-ids drop"):
        predict(run, new_rows, domain="post")
    with caplog.at_level(logging.WARNING):
        found = predict(run, new_rows, domain="post", unseen_ids="drop")
    assert found.equals(predict(run, gone_rows, domain="post"))
    assert found.num_rows == len(style)
    assert "ids outside their tables were left out: 1 of 'hist', 2 of 'style'" in caplog.text


def test_without_new_ids_nothing_is_told(run, caplog):
    with caplog.at_level(logging.WARNING):
        assert predict(run, domain="post", unseen_ids="drop").equals(predict(run, domain="post"))
    assert "left out" not in caplog.text


def test_columns_pass_through_row_by_row(run, rows, tmp_path):
    """Strings, nulls and nested values; row groups of 5, batches of 7, two files."""
    count = rows.num_rows
    keys = pa.array([f"session {i}" if i % 3 else None for i in range(2 * count)])
    both = [rows.append_column("session", keys[:count]), rows.append_column("session", keys[count:])]
    (tmp_path / "rows").mkdir()
    files = written(tmp_path / "rows", *both)
    found = score(run, files, tmp_path / "scores.parquet", "post", keep=("session", "hist"))
    assert found == 2 * count
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema.names == ["user", "session", "hist", "prob_click@post"]
    assert table["session"].to_pylist() == keys.to_pylist()
    assert table["hist"].to_pylist() == 2 * rows["hist"].to_pylist()
    plain = predict(run, files, domain="post")
    assert table.select(plain.schema.names).equals(plain)


def test_columns_that_cannot_pass_through_are_named(run, rows, tmp_path):
    def kept(*names, tables=(rows,)):
        return predict(run, written(tmp_path, *tables), domain="post", keep=names)

    with pytest.raises(UserError, match=r"--keep session: .*0.parquet has no such column; it has: user, "):
        kept("session")
    with pytest.raises(UserError, match="--keep user: predictions have a column of that name already"):
        kept("user")
    texts = with_column(rows, "hour", rows["hour"].cast(pa.int8()))
    with pytest.raises(UserError, match=r"--keep hour: its type in .*1.parquet is not that of the other files"):
        kept("hour", tables=(rows, texts))
