"""A trained run that scores rows in memory, as often as it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchrec_xd.checkpoint import CheckpointChoice
from torchrec_xd.data.in_memory import batches_of
from torchrec_xd.training.inference import load_model

BATCH_ROWS = 8_192

ColumnScorer = Callable[[Mapping[str, Any]], NDArray[np.float32]]
"""Columns of rows of one domain -> a score for each row, [R]."""


@contextmanager
def column_scorer(directory: Path, task: str, checkpoint: CheckpointChoice = "best") -> Iterator[ColumnScorer]:
    """What a run predicts for a task, of rows that are in memory, for as long as the block lasts.

    Args:
        directory: the run folder.
        task: `<label>@<domain>`; rows are those of its domain.
        checkpoint: best or last.

    Raises:
        UserError: no run, no checkpoint, or, of the scorer, columns that do not fit the run's schema.
    """
    domain = task.partition("@")[2]
    with load_model(directory, checkpoint) as (model, config):

        @torch.no_grad()
        def scores(columns: Mapping[str, Any]) -> NDArray[np.float32]:
            found = [
                model(batch, with_loss=False).score[task].float().numpy()
                for batch in batches_of(columns, config.schema_in_use, domain, BATCH_ROWS)
            ]
            return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)

        yield scores
