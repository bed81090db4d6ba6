"""What embedding tables are made of, as settings and commands take it: names and bounds; needs no torch."""

from __future__ import annotations

from typing import Literal

MAX_ROWS = 2**48
"""Of a table."""
MAX_DIM = 100_000
"""Of a table."""
TableOptimizer = Literal["rowwise_adagrad", "adagrad", "adam", "sgd"]
"""Optimizers that are fused into the backward pass of tables."""
CPU_TABLE_OPTIMIZERS: tuple[TableOptimizer, ...] = ("rowwise_adagrad", "adagrad", "sgd")
"""Those that FBGEMM's CPU kernels have."""
TableDtype = Literal["fp32", "fp16"]
"""Types of the weights of tables that are trained."""
PlannedDtype = Literal["fp32", "fp16", "bf16"]
"""Types of the weights of tables that are planned: other programs may train them."""
