"""Other versions of a dependency are refused before anything relies on their private parts."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAKE = """
import importlib.metadata, sys
real, (_, package, found) = importlib.metadata.version, sys.argv
importlib.metadata.version = lambda name: found if name == package else real(name)
import torchrec_xd.private_names
"""


@pytest.mark.parametrize(
    ("package", "found", "accepted"),
    [("torchrec", "9.9.0", False), ("torch", "2.130.0", False), ("torchrec", "1.9.99+cpu", True)],
)
def test_other_versions_than_those_that_were_read_are_refused(package: str, found: str, accepted: bool) -> None:
    done = subprocess.run([sys.executable, "-c", FAKE, package, found], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == accepted, done.stderr
    if not accepted:
        assert f"{package} {found} is installed, but this package relies on private parts" in done.stderr
