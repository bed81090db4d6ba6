"""The command line in a process of its own."""

import subprocess
import sys


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
