"""A run folder: the name of every file that a run writes, in one place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import local_path

NEW_VOCABULARIES = ".vocabularies"
"""Name of the folder in which vocabularies are made."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Raises:
        UserError: it is no local path.
    """

    path: Path

    def __post_init__(self) -> None:
        local_path(self.path, "run folder")

    @property
    def config(self) -> Path:
        """The resolved config, schema included."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The sharding plan that the run's tables follow."""
        return self.path / "plan.json"

    @property
    def id_kinds(self) -> Path:
        """Whether the hashed ids of each table were integers or strings, and in which file."""
        return self.path / "id_kinds.json"

    @property
    def vocabularies(self) -> Path:
        """The vocabularies of the run's tables; there where features have some."""
        return self.path / "vocabularies"

    @property
    def new_vocabularies(self) -> Path:
        """The same while the run begins, before anything else is written."""
        return self.path / NEW_VOCABULARIES

    @property
    def encoders(self) -> Path:
        """What a recipe learnt from the training data, for raw rows to score; there where the data have some."""
        return self.path / "encoders"

    @property
    def metrics(self) -> Path:
        """The final metrics; there once the run has finished."""
        return self.path / "metrics.json"

    @property
    def metric_lines(self) -> Path:
        """Losses and validation scores by step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def transfer(self) -> Path:
        """Which weights were loaded from `init_from`, which start fresh, which were left behind."""
        return self.path / "transfer.json"

    @property
    def continued(self) -> Path:
        """Which checkpoint of `continue_from` the run began with, and which tables have grown."""
        return self.path / "continued.json"

    @property
    def source(self) -> Path:
        """The resolved config of the run whose model this one starts from: that run is not needed again."""
        return self.path / "source.yaml"

    @property
    def data(self) -> Path:
        """Names, sizes and row counts of the files that the run reads."""
        return self.path / "data.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def scores(self) -> Path:
        """In studies: predictions for the test rows."""
        return self.path / "scores.parquet"

    @property
    def diagnostics(self) -> Path:
        """What `diagnose` measured."""
        return self.path / "diagnostics.json"

    @property
    def diagnostics_page(self) -> Path:
        """The same as an HTML page."""
        return self.path / "diagnostics.html"

    def tracker(self, name: str) -> Path:
        """The id that the run has in a tracker."""
        return self.path / f"tracker.{name}.json"

    def reports(self) -> list[Path]:
        """What trackers get as files: settings, plan, metrics and pages, of those that are there."""
        every = (self.config, self.plan, self.data, self.metrics, self.transfer, self.continued, self.diagnostics_page)
        return [path for path in every if path.is_file()]

    def log(self, rank: int) -> Path:
        """The log file of one process."""
        return self.path / ("log.txt" if rank == 0 else f"log.rank{rank}.txt")

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.metrics.is_file()

    def read_metrics(self) -> dict[str, Any]:
        """The content of metrics.json.

        Raises:
            UserError: the run has not finished, or the file is damaged.
        """
        try:
            content: dict[str, Any] = json.loads(self.metrics.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is no finished run: it has no {self.metrics.name}; name the --run-dir of one"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.metrics}: cannot be read: {error}") from None
        return content
