"""Spark for tests: a session in this process, and a real cluster of one master and two workers on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from torchrec_xd.prepare.engine_settings import EngineSettings

START_SECONDS = 240
"""A machine with many other busy processes may need them."""
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Java spends most of a short life on optimising what it runs."""


def spark_engine(master: str) -> EngineSettings:
    """Settings for a master; a session on another one ends, as a process has one session at a time.

    Sessions of the same master are shared by all tests of a process: starting one takes seconds.
    """
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, and there is no command 'java'; install openjdk-17-jre-headless")
    pyspark = pytest.importorskip("pyspark.sql", reason="PySpark is not installed (extra 'spark')")
    session = pyspark.SparkSession.getActiveSession()
    if session is not None and session.sparkContext.master != master:
        session.stop()
    conf = {
        "spark.sql.shuffle.partitions": 1,
        "spark.default.parallelism": 1,
        # To compile code for a few rows, and to plan a query again while it runs, takes longer than to compute them.
        "spark.sql.codegen.wholeStage": False,
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": False,
        "spark.executor.memory": "512m",
        "spark.driver.extraJavaOptions": SHORT_LIVED,
        "spark.executor.extraJavaOptions": SHORT_LIVED,
    }
    return EngineSettings.model_validate({"spark": {"master": master, "conf": conf}})


@contextmanager
def java_process(main: str, arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Spark's own classes that is gone afterwards, with all of its children."""
    import pyspark

    home = Path(pyspark.__file__).parent
    options = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_JAVA_OPTS": SHORT_LIVED}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [home / "bin" / "spark-class", f"org.apache.spark.deploy.{main}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **options},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(process: subprocess.Popen[bytes], log: Path, pattern: str) -> re.Match[str]:
    """What a process has written that matches, as soon as it has."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        found = re.search(pattern, log.read_text(errors="replace"))
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{pattern} is not in:\n{log.read_text(errors='replace')}")


@contextmanager
def standalone_cluster(folder: Path, workers: int = 2) -> Iterator[str]:
    """The address of a master whose workers have a core and a gigabyte each."""
    with ExitStack() as running:
        log = folder / "master.log"
        arguments = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        master = running.enter_context(java_process("master.Master", arguments, log))
        address = said(master, log, r"Starting Spark master at (spark://127\.0\.0\.1:\d+)")[1]
        said(master, log, r"New state: ALIVE")
        started = []
        for number in range(workers):
            log, work = folder / f"worker{number}.log", folder / f"worker{number}"
            sizes = ["--cores", "1", "--memory", "1g", "--work-dir", str(work)]
            worker = java_process("worker.Worker", [*arguments, *sizes, address], log)
            started.append((running.enter_context(worker), log))
        for process, log in started:
            said(process, log, "Successfully registered with master")
        yield address
