"""Sessions of Spark: in this process, on a cluster, quiet, and clear about what is missing."""

import socket
import subprocess
import sys
import textwrap
import time

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.spark import spark_engine
from torchrec_xd.errors import UserError
from torchrec_xd.prepare import spark
from torchrec_xd.prepare.engine import connect, engine_errors
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.input_errors import explained
from torchrec_xd.prepare.tables import Tables

SLOW = "SELECT count(*) FROM range(100000000000) WHERE id % 7 = sin(id)"


def settings(**of_spark):
    return EngineSettings.model_validate({"spark": of_spark})


def value(connection, query):
    return connection.sql(query).to_pyarrow().to_pylist()[0].popitem()[1]


def test_spellings():
    assert EngineSettings().engine == "duckdb"
    assert EngineSettings().duckdb.memory_limit_gb == 2
    for short in ("spark", {"spark": None}, {"spark": {}}):
        assert EngineSettings.model_validate(short).spark == spark.SparkSettings()
    chosen = settings(master="local[2]")
    assert EngineSettings.model_validate(chosen.model_dump()) == chosen
    with pytest.raises(ValueError, match="only one engine runs the queries"):
        EngineSettings.model_validate({"spark": {}, "duckdb": {}})
    with pytest.raises(ValueError, match="sparkle"):
        EngineSettings.model_validate("sparkle")
    with pytest.raises(ValueError, match=r"spark\.sql\.session\.timeZone decides what values mean"):
        settings(conf={"spark.sql.session.timeZone": "Europe/Berlin"})


def test_a_local_session(local_spark, tmp_path):
    connection = connect(local_spark, tmp_path)
    assert value(connection, "SELECT sum(id) FROM range(10)") == 45
    assert value(connection, "SELECT date_format(timestamp_micros(0), 'HH:mm')") == "00:00"
    context = connection._session.sparkContext
    assert context.uiWebUrl is None
    assert context.getConf().get("spark.driver.host") == "127.0.0.1"
    assert connect(local_spark, tmp_path)._session is connection._session


def test_a_session_that_is_there_is_used_or_refused(local_spark, tmp_path):
    session = connect(local_spark, tmp_path)._session
    assert connect(EngineSettings.model_validate("spark"), tmp_path)._session is session
    with pytest.raises(UserError, match=r"'local\[1\]' cannot be used, as this process has a session on 'local\[2\]'"):
        connect(settings(master="local[1]"), tmp_path)
    with pytest.raises(UserError, match=r"'spark.executor.memory' cannot become 9g"):
        connect(settings(conf={"spark.executor.memory": "9g"}), tmp_path)
    connect(settings(conf={"spark.sql.shuffle.partitions": 3}), tmp_path)
    assert session.conf.get("spark.sql.shuffle.partitions") == "3"
    connect(local_spark, tmp_path)
    assert session.conf.get("spark.sql.shuffle.partitions") == "1"
    session.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    session.conf.set("spark.sql.ansi.enabled", "false")
    again = connect(local_spark, tmp_path)
    assert value(again, "SELECT unix_micros(CAST(TIMESTAMP_NTZ '1970-01-01 00:00:01' AS TIMESTAMP)) AS n") == 1_000_000
    assert session.conf.get("spark.sql.ansi.enabled") == "true"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT nothing FROM range(1)", r"^Spark failed: \[UNRESOLVED_COLUMN.*nothing"),
        ("SELECT CAST(id || 'x' AS INT) AS n FROM range(1)", r"^Spark failed: .*CAST_INVALID_INPUT.*'0x'"),
        ("SELECT sum(9223372036854775807) AS n FROM range(2)", r"^Spark failed: .*ARITHMETIC_OVERFLOW"),
    ],
)
def test_failures_are_one_line(local_spark, tmp_path, query, said):
    with pytest.raises(UserError, match=said) as caught, engine_errors():
        value(connect(local_spark, tmp_path), query)
    assert "\n" not in str(caught.value)
    assert "\tat " not in str(caught.value)


def test_a_master_that_is_not_there(tmp_path):
    spark_engine("none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        port = taken.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(
            UserError, match=rf"no master answers at spark://127\.0\.0\.1:{port} \(.*refused\); start it"
        ):
            connect(settings(master=f"spark://127.0.0.1:{port}"), tmp_path)
    assert time.monotonic() - begun < 2 * spark.ANSWER_SECONDS
    with pytest.raises(UserError, match=r"'spark://there' is not spark://HOST:PORT"):
        connect(settings(master="spark://there"), tmp_path)
    with pytest.raises(
        UserError, match=r"cannot start on master 'elsewhere': .*Could not parse Master URL: 'elsewhere'"
    ):
        connect(settings(master="elsewhere"), tmp_path)


def run(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment or None,
    )


def test_without_java(tmp_path):
    pytest.importorskip("pyspark")
    code = """
        from pathlib import Path
        from torchrec_xd.errors import UserError
        from torchrec_xd.prepare.engine import connect
        from torchrec_xd.prepare.engine_settings import EngineSettings
        try:
            connect(EngineSettings.model_validate("spark"), Path("."))
        except UserError as error:
            print(error)
    """
    said, _ = run(code, PATH="/usr/bin:/bin", JAVA_HOME=str(tmp_path)).communicate(timeout=60)
    assert said.count("\n") == 1
    assert said.startswith("engine: spark could not start Java (")
    assert "install Java 17 or newer, or use engine: duckdb" in said


def test_ctrl_c_ends_the_job_and_nothing_else_is_on_the_screen(local_spark):
    code = f"""
        import os, signal, threading, time
        from pathlib import Path
        from torchrec_xd.prepare.engine import connect, engine_errors
        from torchrec_xd.prepare.engine_settings import EngineSettings
        connection = connect(EngineSettings.model_validate({local_spark.model_dump()!r}), Path("."))
        tracker = connection._session.sparkContext.statusTracker()
        def stop():
            while not tracker.getActiveJobsIds():
                time.sleep(.05)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=stop).start()
        try:
            with engine_errors():
                connection.sql("{SLOW}").to_pyarrow()
        except KeyboardInterrupt:
            print("interrupted")
        while tracker.getActiveJobsIds():
            time.sleep(.05)
        print("no job is left")
    """
    said, _ = run(code).communicate(timeout=120)
    assert said == "interrupted\nno job is left\n"


def test_a_cluster(cluster, tmp_path, monkeypatch):
    connection = connect(spark_engine(cluster), tmp_path)
    assert value(connection, "SELECT sum(id) FROM range(1000000)") == 499_999_500_000
    connection._session.range(10).write.parquet(str(tmp_path / "rows"))
    assert ibis.duckdb.connect().read_parquet(f"{tmp_path}/rows/*.parquet").count().to_pyarrow().as_py() == 10
    connection._session.stop()
    monkeypatch.setattr(spark, "WORKER_SECONDS", 2)
    with pytest.raises(UserError, match=rf"no worker of {cluster} took a job within 2 s; .*spark.executor.memory"):
        connect(settings(master=cluster, conf={"spark.executor.memory": "64g"}), tmp_path)


def test_nanoseconds_are_read_as_microseconds(local_spark, tmp_path):
    """PyArrow writes them by default; Spark knows none."""
    far = 1_700_000_000_123_456_789
    plain = pa.array([far, far + 1, -1, None, 0], pa.timestamp("ns"))
    rows = pa.table({"n": range(5), "plain": plain, "with zone": plain.cast(pa.timestamp("ns", "Asia/Tokyo"))})
    pq.write_table(rows, tmp_path / "rows.parquet")
    found = {}
    for name, engine in (("duckdb", EngineSettings()), ("spark", local_spark)):
        tables = Tables(connect(engine, tmp_path))
        tables.read("rows", "parquet", [str(tmp_path / "rows.parquet")], {}, {})
        read = tables.connection.table("rows").order_by("n")
        found[name] = [tables.arrow(read.select(x=tables.micros(read[c])))["x"] for c in ("plain", "with zone")]
        kept = tables.arrow(read.select("plain", "n")).schema
        assert kept.field("plain").type == pa.timestamp("us")
    assert found["spark"] == found["duckdb"]
    assert found["spark"][0].to_pylist() == found["spark"][1].to_pylist() == [far // 1000 + 1] * 2 + [0, None, 0]
    nested = pa.table({"moments": [[far]]}, pa.schema({"moments": pa.list_(pa.timestamp("ns"))}))
    pq.write_table(nested, tmp_path / "nested.parquet")
    with pytest.raises(UserError, match=r"'moments' is list<.*\[ns\]>, and Spark reads no nanoseconds within lists"):
        tables.read("nested", "parquet", [str(tmp_path / "nested.parquet")], {}, {})


def test_a_view_that_breaks_java_is_explained_in_one_line(local_spark, tmp_path):
    tables = Tables(connect(local_spark, tmp_path))
    with pytest.raises(tables.faults) as caught:
        tables.view("letters", "SELECT word[6] AS letter FROM (SELECT 'letters' AS word)")
    assert explained(caught.value).startswith("java.lang.ClassCastException: ")
    assert "\n" not in explained(caught.value)
