"""How fast raw keys become rows: `python -m tools.vocabulary_speed [KEYS]`, one process, from Arrow to rows.

Queries are random keys of the vocabulary, a fifth of them unknown, as many as it has keys; the best of three rounds.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pyarrow as pa

from torchrec_xd.data.key_rows import KeyRows, hashes_of


def main(count: int) -> None:
    """Print seconds to build the map and ids/s of looking keys up, for integers and for texts."""
    random = np.random.default_rng(0)
    numbers = np.unique(random.integers(-(2**62), 2**62, count + count // 100))[:count]
    unknown = random.integers(-(2**62), 2**62, count)
    queries = np.where(random.random(count) < 0.8, numbers[random.integers(0, count, count)], unknown)
    for kind in ("integers", "texts"):
        keys, asked = pa.array(numbers), pa.array(queries)
        if kind == "texts":
            keys, asked = keys.cast(pa.large_string()), asked.cast(pa.large_string())
        began = time.perf_counter()
        own = KeyRows.of(hashes_of(keys), np.arange(1, count + 1))
        built, best = time.perf_counter() - began, float("inf")
        for _ in range(3):
            began = time.perf_counter()
            for at in range(0, count, 1 << 18):
                own.rows_of(asked.slice(at, 1 << 18))
            best = min(best, time.perf_counter() - began)
        print(f"{kind}: {count:,} keys, built in {built:.1f} s, {count / best:,.0f} ids/s")


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000)
