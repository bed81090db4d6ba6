"""Experiment trackers: MLflow and Weights & Biases are told what a run writes into its folder."""
# ruff: noqa: PLC0415 - the trackers are imported where a run names them

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from uuid import uuid4

from torchrec_xd.config import TrackerName
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder

Status = Literal["FINISHED", "KILLED", "FAILED"]
PROJECT = "torchrec-xd"
END_SECONDS = 25.0
"""What a tracker has at the end of a run: torchrun kills a failed one 30 s after its first process has left."""
_BATCH = 1000
"""Values of one request to MLflow, which takes no more."""
_PARAMETERS = 100
"""The same for parameters."""
_LENGTH = 6000
"""Of a parameter's value."""


class Line(NamedTuple):
    """A line of metrics.jsonl."""

    step: int
    values: dict[str, float]
    """Its numbers."""
    read: int
    """When it was read, in ms since 1970: metrics.jsonl has no clock."""
    of_validation: bool = False
    """Whether it is that of the validation after the step."""


class Tracker(Protocol):
    """What is asked of a tracker; every method may wait for a server, or raise."""

    def open(self, run: str | None) -> tuple[str, int]:
        """Begin a run, or go on with one; returns its id, and how many lines of metrics.jsonl it has."""

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Give it the run's settings, by dotted key."""

    def send(self, lines: Sequence[Line], total: int) -> None:
        """Give it lines; it has `total` then."""

    def finish(self, status: Status, metrics: Mapping[str, float], step: int, files: Sequence[Path]) -> None:
        """End the run, with final metrics at `step`, if there are any, and files."""


class MlflowTracker:
    """MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

    LINES = "torchrec_xd.lines"
    """Tag of a run: how many lines it has. It is written with them, so that none is sent twice."""

    def __init__(self, folder: RunFolder) -> None:
        # Failed requests are tried again here; MLflow's own seven tries keep silent for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(END_SECONDS)))
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._folder = folder
        self._run = ""

    @staticmethod
    def refuse_unusable() -> None:
        """Refuse to begin without an address."""
        import mlflow

        if not mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
            raise UserError(
                "trackers: mlflow: MLFLOW_TRACKING_URI does not say where MLflow is; set it, for example to "
                "http://127.0.0.1:5000, or remove mlflow from trackers"
            )

    def open(self, run: str | None) -> tuple[str, int]:
        """See `Tracker`. A run that the server does not know, as it is another server, is begun anew."""
        from mlflow.exceptions import MlflowException

        if run is not None:
            try:
                self._client.update_run(run, status="RUNNING")
                self._run = run
                return run, int(self._client.get_run(run).data.tags.get(self.LINES, 0))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        elif self._run:
            self._client.set_terminated(self._run, "KILLED")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        created = self._client.create_run(experiment, run_name=self._folder.path.name)
        self._run = created.info.run_id
        return self._run, 0

    def describe(self, settings: Mapping[str, Any]) -> None:
        """See `Tracker`. MLflow keeps the first value of a parameter."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run).data.params
        every = [Param(key, str(value)[:_LENGTH]) for key, value in settings.items() if key not in known]
        for first in range(0, len(every), _PARAMETERS):
            self._client.log_batch(self._run, params=every[first : first + _PARAMETERS])

    def send(self, lines: Sequence[Line], total: int) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric, RunTag

        values = [Metric(name, value, line.read, line.step) for line in lines for name, value in line.values.items()]
        last = max(len(values) - 1, 0) // _BATCH * _BATCH
        for first in range(0, last + 1, _BATCH):
            tags = [RunTag(self.LINES, str(total))] if first == last else []
            self._client.log_batch(self._run, metrics=values[first : first + _BATCH], tags=tags)

    def finish(self, status: Status, metrics: Mapping[str, float], step: int, files: Sequence[Path]) -> None:
        """See `Tracker`. Final metrics that the run has for this step are not sent again."""
        from mlflow.entities import Metric

        known = self._client.get_metric_history(self._run, next(iter(metrics))) if metrics else []
        if not any(metric.step == step for metric in known):
            now = int(1000 * time.time())
            every = [Metric(name, value, now, step) for name, value in metrics.items()]
            for first in range(0, len(every), _BATCH):
                self._client.log_batch(self._run, metrics=every[first : first + _BATCH])
        for file in files:
            self._client.log_artifact(self._run, str(file))
        self._client.set_terminated(self._run, status)


class WandbTracker:
    """Weights & Biases, as WANDB_MODE, WANDB_API_KEY, WANDB_PROJECT and its other variables say.

    A run of W&B has one row for each line, counted by W&B itself. Offline it is a folder on the disk; a resumed run
    writes another one, with all lines, under the same id.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._run: Any = None

    @staticmethod
    def refuse_unusable() -> None:
        """Refuse to begin without an account, but offline."""
        import wandb

        try:
            known = wandb.setup().settings.mode != "online" or wandb.login(prompt=False)
        except wandb.errors.AuthenticationError:  # there is a key; its server may be away, which ends no run
            known = True
        if not known:
            raise UserError(
                "trackers: wandb: no API key is known; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline to "
                "write to the disk alone, or remove wandb from trackers"
            )

    def open(self, run: str | None) -> tuple[str, int]:
        """See `Tracker`."""
        import wandb

        if self._run is not None:
            self._run.finish(exit_code=1)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run or uuid4().hex[:8],
            name=self._folder.path.name,
            dir=os.environ.get("WANDB_DIR", str(self._folder.path)),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=END_SECONDS / 2, finish_timeout=END_SECONDS / 2
            ),
        )
        self._run.define_metric("*", step_metric="step")
        return self._run.id, self._run.step

    def describe(self, settings: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def send(self, lines: Sequence[Line], total: int) -> None:
        """See `Tracker`; it does not wait."""
        for line in lines:
            self._run.log({"step": line.step, **line.values})

    def finish(self, status: Status, metrics: Mapping[str, float], step: int, files: Sequence[Path]) -> None:
        """See `Tracker`."""
        self._run.summary.update(dict(metrics))
        for file in files:
            self._run.save(str(file), base_path=str(self._folder.path), policy="now")
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


TRACKERS: Mapping[TrackerName, type[MlflowTracker] | type[WandbTracker]] = {
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


def refuse_unusable(names: Iterable[TrackerName]) -> None:
    """Refuse trackers that could not be used, before the run begins.

    Raises:
        UserError: a package is missing, or its address or account is not known.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"trackers: {name} is not installed: pip install 'torchrec-xd[trackers]', or remove it from trackers"
            )
        TRACKERS[name].refuse_unusable()


def name_of(metric: str) -> str:
    """A name that trackers take: `@` becomes `/`, as in `click/target`; what MLflow refuses becomes `_`."""
    parts = re.sub(r"[^\w\-. :/]", "_", metric.replace("@", "/")).split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)
