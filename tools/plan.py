"""`python -m tools.plan`, the same as `torchrec-xd plan`."""

from torchrec_xd.cli.plan import app
from torchrec_xd.error_boundary import run_command

if __name__ == "__main__":
    run_command(app)
