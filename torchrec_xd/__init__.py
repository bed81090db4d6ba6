"""Cross-domain recommendation models on sharded embedding tables."""

import os

# How long OpenMP's threads spin for each other before they sleep; read when torch is imported, so it is said here. By
# default they spin for milliseconds, and a machine with one more busy process trains several times slower; 10,000 turns
# cost nothing on an idle one (docs/results/throughput_*.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
