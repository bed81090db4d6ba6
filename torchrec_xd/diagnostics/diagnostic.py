"""What every diagnostic has: a name, how to read it, what it is fed, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import plotly.graph_objects as go
from torch import Tensor

from torchrec_xd.batch import Batch
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.feature import Feature
from torchrec_xd.outputs import Output
from torchrec_xd.reports.page import Grid
from torchrec_xd.schema import Split

Columns: TypeAlias = Mapping[str, Tensor]
"""Column to its values in all rows of a batch, `[B]`."""
Part: TypeAlias = "str | Grid | go.Figure"


class Diagnostic(Protocol):
    """One thing that is measured on batches and a model's outputs for them."""

    name: str
    """Key in diagnostics.json."""
    title: str
    """Heading on the page."""
    reading: str
    """One sentence: how to read it."""

    reads_training: bool = False
    """Whether it is also fed rows of the training split, by `update_training`, to hold them against the split's."""

    def integer_columns(self) -> tuple[str, ...]:
        """Integer columns of the rows that it reads besides the model's features; -1 where a row has no value."""
        return ()

    def number_features(self, split: Split) -> tuple[Feature, ...]:
        """Further dense columns of the split's rows that it reads and the model does not see."""
        return ()

    def update(self, batch: Batch, output: Output, columns: Columns) -> None:
        """Add a batch, the model's output for it, and the columns that were asked for."""

    def update_training(self, batch: Batch, output: Output) -> None:
        """Add a batch of the training split, and the model's output for it."""
        return

    def values(self) -> dict[str, Any]:
        """What was measured, as JSON."""

    def findings(self, values: dict[str, Any]) -> list[Finding]:
        """What is wrong by these values, most important first; none where all is well."""
        return []

    def parts(self, values: dict[str, Any]) -> list[Part]:
        """What was measured, for the page."""
