"""Lake tables on an object store: the rows of a version, and outages of the store."""

import functools
import time
from types import SimpleNamespace

import deltalake
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from tests.support.object_store import KEYS
from torchrec_xd.data import outages
from torchrec_xd.data.files import ParquetFiles
from torchrec_xd.data.outages import Patience
from torchrec_xd.errors import OutageError, UserError


@pytest.fixture
def delta(store, moto_port):
    """Version 0: 1, 2. Version 1: also 3. The location has no version yet."""
    options = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{moto_port}", "AWS_ALLOW_HTTP": "true"}
    for rows in ([1, 2], [3]):
        deltalake.write_deltalake(
            f"s3://{store.bucket}/delta", pa.table({"a": rows}), mode="append", storage_options=options
        )
    return f"delta+s3://{store.bucket}/delta?{store.query}&region=us-east-1", 0


@pytest.fixture
def iceberg(store, moto_port, tmp_path):
    """The same two states as snapshots."""
    settings = {"s3.endpoint": f"http://127.0.0.1:{moto_port}", "s3.region": "us-east-1"}
    keys = {"s3.access-key-id": KEYS["AWS_ACCESS_KEY_ID"], "s3.secret-access-key": KEYS["AWS_SECRET_ACCESS_KEY"]}
    catalog = SqlCatalog(
        "c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"s3://{store.bucket}/warehouse", **settings, **keys
    )
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.log", pa.schema([("a", pa.int64())]))
    for rows in ([1, 2], [3]):
        table.append(pa.table({"a": rows}))
    folder = table.location().removeprefix("s3://")
    return f"iceberg+s3://{folder}?{store.query}&region=us-east-1", table.snapshots()[0].snapshot_id


@pytest.fixture(params=["delta", "iceberg"])
def table(request):
    return request.getfixturevalue(request.param)


def rows(location, patience):
    files = ParquetFiles([location], "/data", lambda file, columns: None, patience=patience)
    read = files.reader(["a"])
    return sorted(value for group in files.row_groups for value in read(group)["a"].to_pylist())


AT_ONCE = Patience(0, "loader.retry_s")


def test_the_rows_of_a_version(table):
    location, version = table
    assert rows(f"{location}&version={version}", AT_ONCE) == [1, 2]
    with pytest.raises(
        UserError, match=r"name its (version|snapshot), '.*&region=us-east-1&version=(\d+)' for the"
    ) as e:
        rows(location, AT_ONCE)
    newest = str(e.value).partition("for the newest")[0].rpartition("version=")[2].strip("' ")
    assert rows(f"{location}&version={newest}", AT_ONCE) == [1, 2, 3]


def test_names_with_spaces(store, moto_port):
    """Delta gives encoded locations."""
    options = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{moto_port}", "AWS_ALLOW_HTTP": "true"}
    deltalake.write_deltalake(f"s3://{store.bucket}/a 100% table", pa.table({"a": [7]}), storage_options=options)
    assert rows(f"delta+s3://{store.bucket}/a 100% table?{store.query}&version=0", AT_ONCE) == [7]


def test_an_endpoint_with_its_scheme_and_the_scheme_of_spark(table, store):
    location, version = table
    there = location.replace("endpoint_override=", "endpoint_override=http://").replace("+s3://", "+s3a://")
    assert rows(f"{there}&version={version}", AT_ONCE) == [1, 2]


def test_below_a_root_on_a_store(delta, store):
    files = ParquetFiles(["delta://delta?version=0"], store.at(), lambda file, columns: None, patience=AT_ONCE)
    assert sum(group.rows for group in files.row_groups) == 2


def test_an_outage_is_told_as_one(table, store):
    location, version = table
    store.proxy.refuse()
    with pytest.raises(OutageError, match=r"^outage: the store of .* has not answered for .* \(loader.retry_s\): \S"):
        rows(f"{location}&version={version}", AT_ONCE)


def test_it_is_asked_again(table, store, monkeypatch, caplog):
    """It answers once a client has given up for the first time."""
    location, version = table
    # in that module alone: threads that other tests left behind sleep too
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: store.proxy.answer())
    monkeypatch.setattr(outages, "time", clock)
    store.proxy.refuse()
    assert rows(f"{location}&version={version}", Patience(60)) == [1, 2]
    assert "the store does not answer" in caplog.text


def test_what_is_not_there_is_no_outage(store):
    read = functools.partial(rows, patience=Patience(60))
    with pytest.raises(UserError, match="cannot be read as a Delta Lake table at version 3: Generic delta"):
        read(f"delta+s3://{store.bucket}/nothing?{store.query}&version=3")
    with pytest.raises(UserError, match="cannot be read as an Iceberg table: "):
        read(f"iceberg+s3://{store.bucket}/nothing?{store.query}&version=3")


def test_options_that_only_pyarrow_knows(store):
    with pytest.raises(
        UserError, match="option 'anonymous' is not known for a lake table; known are: region, scheme, "
    ):
        rows(f"delta+s3://{store.bucket}/delta?anonymous=1&version=0", AT_ONCE)
    with pytest.raises(UserError, match="option 'region' is not known for a lake table; known are: none on this store"):
        rows("delta+gs://bucket/delta?region=1&version=0", AT_ONCE)
    with pytest.raises(UserError, match="option is given twice, by 'root' or here"):
        ParquetFiles(["delta://delta?region=b&version=0"], "s3://bucket?region=a", lambda file, columns: None)
    for secret in ("secret_key=canary&version=0", "version=x&secret_key=canary"):
        with pytest.raises(UserError, match="credentials") as error:
            rows(f"delta+s3://{store.bucket}/delta?{secret}", AT_ONCE)
        assert "canary" not in str(error.value)
