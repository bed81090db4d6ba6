"""Tools run beside training."""

import torchrec_xd  # noqa: F401 - before torch, whose threads it tells how to wait
