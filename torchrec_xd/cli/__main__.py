"""`python -m torchrec_xd.cli`, the same as the command `torchrec-xd`."""

from torchrec_xd.cli.app import main

main()
