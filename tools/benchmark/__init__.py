"""Throughput, measured so that it can be trusted: `python -m tools.benchmark --help`, also `torchrec-xd benchmark`."""
