"""The names of what embedding tables are made of, as settings and commands take them; needs no torch."""

from __future__ import annotations

from typing import Literal

TableOptimizer = Literal["rowwise_adagrad", "adagrad", "adam", "sgd"]
"""Optimizers that are fused into the backward pass of tables."""
TableDtype = Literal["fp32", "fp16"]
"""Types of the weights of tables that are trained."""
PlannedDtype = Literal["fp32", "fp16", "bf16"]
"""Types of the weights of tables that are planned: other programs may train them."""
