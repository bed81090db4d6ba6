"""Settings of all tests."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.commands import main_of
from tests.support.spark import spark_engine, standalone_cluster
from torchrec_xd.prepare.engine_settings import EngineSettings

# How long an example takes says something about who else uses the machine, and nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# Shells start background jobs with SIGINT ignored, and so would be all processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-rows", action="store_true", help="also run tests that prepare millions of rows, for minutes"
    )
    parser.addoption("--fuzz-cases", type=int, default=60, help="cases of every fuzz test (tests/fuzz); default 60")


@pytest.fixture
def fuzz_seeds(request: pytest.FixtureRequest) -> range:
    """The seeds of a fuzz test, one for each case; print a case's seed before it runs, so that a failure shows it."""
    return range(request.config.getoption("--fuzz-cases"))


@pytest.fixture
def command_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command in this process, where torch is imported already; `tests.support.commands.command` takes seconds."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = main_of(monkeypatch, *arguments)
        return subprocess.CompletedProcess(list(map(str, arguments)), code, *capfd.readouterr())

    return run


@pytest.fixture
def local_spark() -> EngineSettings:
    """Spark in this process, shared by all tests of it."""
    return spark_engine("local[2]")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Spark cluster of one master and two workers; `spark_engine(cluster)` are the settings."""
    spark_engine("none")
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as address:
        yield address
        spark_engine("none")  # a session without its cluster would be of no use
