"""The command line, in a process of its own or in this one."""

import subprocess
import sys

import pytest


def command(*arguments, check=True, **options):
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_xd.cli", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
        **options,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def main_of(monkeypatch, *arguments):
    """The exit code of the command line in this process."""
    from torchrec_xd.cli.app import main

    for name in ("GOMP_SPINCOUNT", "KINETO_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")  # set by commands, and taken back
    monkeypatch.setattr(sys, "argv", ["torchrec-xd", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0
