"""Spark: its settings, a session that does not write on the screen, and its failures in one line."""
# ruff: noqa: PLC0415 - PySpark is imported where it is asked for

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
from typing import Any

import ibis

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.engine_settings import SparkSettings

ANSWER_SECONDS = 5
"""What a master has to accept a connection."""
WORKER_SECONDS = 60
"""What the workers of a cluster have to run a first, empty job."""
_STANDALONE = "spark://"
_VALUES = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",  # a sum that is too large is an error
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # Tables.read makes timestamps of them; else they are an error
}
"""What values depend on; a session that is there already gets them too."""
_interrupted = threading.Event()


def ibis_on_spark(settings: SparkSettings) -> Any:
    """An Ibis backend on the session of this process: the one that is there, or a new one. Ctrl-C stops its jobs.

    Raises:
        UserError: PySpark or Java is not there, no master answers or no worker takes a job in time, or the session that
            is there has another master or a setting that cannot be changed any more.
    """
    try:
        import pyspark

        connect = ibis.pyspark.connect
    except ImportError:
        raise UserError(
            "engine: spark needs PySpark, which is not installed; install torchrec-xd[spark], or use engine: duckdb"
        ) from None
    session: Any = pyspark.sql.SparkSession.getActiveSession()
    if session is None:
        session = _start(settings)
    else:
        _adapt(session, settings)
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)  # it prints what is raised, with Java's stack
    connection = connect(session)
    _forget_plans_of_cached_tables(connection)
    return connection


def _forget_plans_of_cached_tables(connection: Any) -> None:
    """Compute what `Table.cache` names at once.

    Spark's own cache keeps the plan: every later query analyses it again, with those of the caches within it, which
    takes minutes, and writes it down as text, which takes more memory than there is.
    """

    def create(name: str, expression: Any) -> Any:
        rows = connection._session.sql(connection.compile(expression)).localCheckpoint()
        rows.createTempView(name)
        connection._cached_dataframes[name] = rows
        return connection.table(name)

    assert hasattr(connection, "_create_cached_table")
    connection._create_cached_table = create


def _start(settings: SparkSettings) -> Any:
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    master = settings.master or "local[*]"
    _await_answer(master)
    conf = SparkConf().setAll([*{**_defaults(master), **_texts(settings)}.items()])
    with tempfile.TemporaryFile() as log:  # Java's own copy stays open
        try:
            output = {"stdout": log, "stderr": subprocess.STDOUT}
            java = SparkContext._gateway or launch_gateway(conf, output)  # type: ignore[no-untyped-call]
        except Exception as error:
            if not is_spark_error(error):
                raise
            log.seek(0)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
            said = next((line for line in lines if line and "WARN" not in line), first_line(error))
            raise UserError(
                f"engine: spark could not start Java ({said}); install Java 17 or newer, or use engine: duckdb"
            ) from None
    try:
        context = SparkContext(master=master, appName="torchrec-xd", conf=conf, gateway=java)
        if not master.startswith("local"):
            _await_workers(context, master)
        session = SparkSession.builder.getOrCreate()
    except Exception as error:
        if not is_spark_error(error):
            raise
        raise UserError(f"engine: spark cannot start on master '{master}': {first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        _stop_jobs_on_interrupt(context)
    return session


def _stop_jobs_on_interrupt(context: Any) -> None:
    """PySpark's own handler of Ctrl-C speaks to Java on the connection that the running query waits on."""
    tracker = context.statusTracker()

    def stop(running: list[int]) -> None:
        running += tracker.getActiveJobsIds()
        context.cancelAllJobs()

    def handle(_signal: int, _frame: Any) -> None:
        running: list[int] = []
        thread = threading.Thread(target=stop, args=(running,), daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        if _interrupted.is_set() or not running:
            raise KeyboardInterrupt
        _interrupted.set()  # the query ends in an error, which becomes a KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)


def _defaults(master: str) -> dict[str, str]:
    """Settings that `conf` may change; on a cluster Spark's own number of partitions and addresses hold."""
    defaults = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        # Adaptive execution writes plans down as text; of large ones that is gigabytes.
        "spark.sql.maxPlanStringLength": "4096",
        **_VALUES,
    }
    local = master.startswith("local")
    if local:
        defaults["spark.sql.shuffle.partitions"] = str(4 * (os.cpu_count() or 1))
    if local or any(f"//{host}" in master for host in ("127.0.0.1", "localhost")):
        defaults |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return defaults


def _texts(settings: SparkSettings) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.conf.items()}


def _adapt(session: Any, settings: SparkSettings) -> None:
    """Use a session that is there already with these settings."""
    master = session.sparkContext.master
    if settings.master not in (None, master):
        raise UserError(
            f"engine: spark: master '{settings.master}' cannot be used, as this process has a session on '{master}'; "
            "leave 'master' out, or stop that session first"
        )
    for key, value in _VALUES.items():
        session.conf.set(key, value)
    for key, value in _texts(settings).items():
        known = session.conf.get(key, "")
        if known == value or (key.endswith("extraJavaOptions") and value in known):  # Spark adds options of its own
            continue
        if not session.conf.isModifiable(key):
            raise UserError(
                f"engine: spark: '{key}' cannot become {value}, as this process has a session already; leave it out, "
                "or stop that session first"
            )
        session.conf.set(key, value)


def _await_answer(master: str) -> None:
    """Spark itself would try for minutes to reach a master of a standalone cluster."""
    if not master.startswith(_STANDALONE):
        return
    for address in master.removeprefix(_STANDALONE).split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"engine: spark: master '{master}' is not spark://HOST:PORT, such as spark://10.0.0.1:7077")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
            return
        except (OSError, OverflowError) as error:
            reason = error
    raise UserError(
        f"engine: spark: no master answers at {master} ({reason}); start it, correct the address, or use "
        "engine: {spark: {master: 'local[*]'}}"
    )


def _await_workers(context: Any, master: str) -> None:
    """Run an empty job: a cluster without free workers lets jobs wait for ever."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            context._jsc.parallelize([1]).count()
        except Exception as error:
            failures.append(error)

    job = threading.Thread(target=run, daemon=True)
    job.start()
    job.join(WORKER_SECONDS)
    if job.is_alive():
        context.stop()
        raise UserError(
            f"engine: spark: no worker of {master} took a job within {WORKER_SECONDS} s; start workers, or ask for no "
            "more than they have: spark.executor.cores and spark.executor.memory (1g) under 'conf'"
        )
    if failures:
        context.stop()
        raise failures[0]


def is_spark_error(error: Exception) -> bool:
    """Whether PySpark or its bridge to Java raised it; imports neither."""
    return any(f"{kind.__module__}.".startswith(("pyspark.", "py4j.")) for kind in type(error).__mro__)


def was_cancelled(error: Exception) -> bool:
    """Whether Ctrl-C ended the query; asked once."""
    if not (is_spark_error(error) and _interrupted.is_set()):
        return False
    _interrupted.clear()
    return True


def failure(error: Exception) -> str:
    """What Spark says about an error, in one line, and what may help."""
    said = first_line(error)
    if "OutOfMemoryError" in said or "No space left" in said:
        remedy = (
            "raise spark.executor.memory (local: spark.driver.memory) or name a larger spark.local.dir under 'conf'"
        )
        return f"Spark has too little memory or disk ({said}); {remedy}"
    return f"Spark failed: {said}"


def first_line(error: Exception) -> str:
    """The first line of an engine's message; a Java stack trace follows it."""
    lines = [line.removeprefix(":").strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("An error occurred while calling")]
    return said[0] if said else type(error).__name__
