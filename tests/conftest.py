"""Settings of all tests."""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about who else uses the machine, and nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=60, help="cases of every fuzz test (tests/fuzz); default 60")


@pytest.fixture
def fuzz_seeds(request: pytest.FixtureRequest) -> range:
    """The seeds of a fuzz test, one for each case; print a case's seed before it runs, so that a failure shows it."""
    return range(request.config.getoption("--fuzz-cases"))
