"""Importing torch and what stands on it in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what a command needs without the garbage collector.

    torch and torchrec make some half a million objects that stay. The collector would search them over and over while
    they are imported, and once more when the process ends: 4.4 s for an error in a config instead of 2.8 s. After the
    block it collects again, and leaves what was imported alone.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
