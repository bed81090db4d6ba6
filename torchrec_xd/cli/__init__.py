"""The command `torchrec-xd`: one file per command.

torch and torchrec take seconds to import: each command imports what it needs inside its function, so that --help and
errors come at once.
"""

from torchrec_xd.cli.app import main

__all__ = ["main"]
