"""Throughput, measured so that it can be trusted: `python -m torchrec_xd.benchmark --help`, also `torchrec-xd benchmark`."""
