"""Throughput, measured so that it can be trusted: `torchrec-xd benchmark --help`."""
