"""The trials of one model on one data set: what is tried next, how it is judged, which run is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from torchrec_xd.config import RunConfig
from torchrec_xd.data.stamps import current_stamps, data_changes, read_stamps
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.study.assignments import Assignments
from torchrec_xd.study.cells import cell_config
from torchrec_xd.study.design import Range, Study, Trial
from torchrec_xd.study.worker import CellJob

ON_VALIDATION = ("evaluate_on=valid", "train_on_valid=false")
RANDOM_TRIALS = 5
"""Trials before the sampler begins to learn from those that are done."""


class _Numbered(Protocol):
    """A trial of Optuna, whatever its state."""

    @property
    def number(self) -> int: ...

    @property
    def params(self) -> dict[str, Any]: ...


class Search:
    """One trial after the other, by Optuna's TPE; the first is the config as it is, if it lies in the space.

    Args:
        study: what the model is part of.
        folder: the study file's.
        place: folder of all runs of this search, `.../DATA/MODEL`.
        trials: what Optuna keeps of them.
        parent: search of the model whose best run this one's runs start from.

    Raises:
        UserError: no space, a setting in it that the model does not have, or trials that were made of other settings or
            on other data.
    """

    def __init__(self, study: Study, folder: Path, place: Path, trials: optuna.Study, parent: Search | None) -> None:
        self.place, self.parent = place, parent
        self.running: CellJob | None = None
        self.fault: str | None = None
        """Of the trial that ended last."""
        self._study, self._folder, self._trials = study, folder, trials
        self._data, self._model = place.parent.name, place.name
        self._task = study.data[self._data].task
        self._space = {**study.space, **study.models[self._model].space}
        if not self._space:
            raise UserError(f"space: nothing to tune for '{self._model}'; list which settings may take which values")
        self._check_given()
        tried = self._config({key: _first(found) for key, found in self._space.items()})
        self._distributions = {
            key: _distribution(found, whole=isinstance(_value(tried, key), int)) for key, found in self._space.items()
        }
        self._check_same_settings()
        self._check_same_data()
        self.outside: list[str] = []
        """Of a new search: settings whose own value lies outside of the space; then the config itself is no trial."""
        if not trials.trials:
            own = self._own_values()
            self.outside = [key for key in self._space if key not in own]
            if not self.outside:
                trials.enqueue_trial(own)
        self._interrupted = [trial for trial in trials.trials if trial.state == TrialState.RUNNING]
        self._current: _Numbered | None = None

    def first_configs(self) -> tuple[RunConfig, list[RunConfig]]:
        """The config as it is, on the validation split, and those of the models that it goes back to."""
        above = [] if self.parent is None else self.parent.first_configs()
        return self._config({}), [above[0], *above[1]] if above else []

    def check_scored(self) -> None:
        """Check that there is something to judge trials by.

        Raises:
            UserError: a domain has no validation rows.
        """
        schema = self._config({}).schema_in_use
        for task in self._scored([task.name for task in schema.tasks]):
            domain = task.partition("@")[2]
            if not schema.domains[domain].paths("valid"):
                raise UserError(
                    f"{self._data}/{self._model}: its trials are judged by '{task}' on the valid split, and domain "
                    f"'{domain}' has none; name its files in the schema (domains: {domain}: valid: PATH)"
                )

    def done(self) -> list[FrozenTrial]:
        """Trials that came to an end, a good one or not."""
        return [trial for trial in self._trials.trials if trial.state in (TrialState.COMPLETE, TrialState.FAIL)]

    def ready(self, trials: int) -> bool:
        """Whether the next trial can begin, if there are to be so many."""
        before = self.parent
        waits = self.running is not None or (before is not None and len(before.done()) < trials)
        return not waits and len(self.done()) < trials

    def begin(self) -> CellJob | str:
        """The next trial, or one that was interrupted; the name of one that the config refuses, which has failed."""
        if self._interrupted:
            self._current = self._interrupted.pop()
        else:
            # Each trial has its own sampler: a resumed search goes on as if it had not been stopped.
            seed = zlib.crc32(f"{self._data}/{self._model}/{len(self._trials.trials)}".encode())
            self._trials.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
            self._current = self._trials.ask(self._distributions)
        folder = self._run(self._current)
        name = f"{self._data}/{self._model}/{folder.name}"
        try:
            self.running = CellJob(name, self._config(self._current.params), folder)
        except UserError as error:
            self._trials.tell(self._current.number, state=TrialState.FAIL)
            self.fault, self._current = str(error), None
            return name
        return self.running

    def end(self, fault: str | None) -> None:
        """The running trial ended; only the best one's checkpoints stay, for those that start from it."""
        assert self.running is not None
        assert self._current is not None
        score = None if fault else self._score(self.running)
        self.fault = fault or (None if score is not None else "its validation metric is undefined")
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        self._trials.tell(self._current.number, score, state=state)
        best = self._best()
        for trial in self.done():
            if best is None or trial.number != best.number:
                shutil.rmtree(self._run(trial) / "checkpoints", ignore_errors=True)
        self.running = self._current = None

    def best_assignments(self, trials: int) -> Assignments:
        """Those of the best one of the first so many trials.

        Raises:
            UserError: every trial failed.
        """
        best = self._best(trials)
        if best is None:
            raise UserError(f"{self.place}: every trial failed; correct the config of '{self._model}', or its space")
        return _assignments(best.params)

    def listed(self, trials: int) -> tuple[Trial, ...]:
        """The first so many trials, for people to read."""
        return tuple(
            Trial(
                number=trial.number,
                assign=_assignments(trial.params),
                score=trial.value,
                seconds=round(trial.duration.total_seconds(), 1) if trial.duration else 0.0,
            )
            for trial in self.done()[:trials]
        )

    def _run(self, trial: _Numbered) -> Path:
        return self.place / f"{trial.number:03d}"

    def _best(self, trials: int | None = None) -> FrozenTrial | None:
        """The best one of all trials, or of the first so many."""
        known = [(trial.value, -trial.number, trial) for trial in self.done()[:trials] if trial.value is not None]
        return max(known)[2] if known else None

    def _config(self, params: Mapping[str, Any]) -> RunConfig:
        before = None
        if self.parent is not None:
            best = self.parent._best()
            before = self.parent.place if best is None else self.parent._run(best)
        assign = [*_assignments(params), *self._study.on_top, *ON_VALIDATION]
        return cell_config(self._study, self._folder, self._data, self._model, assign, before)

    def _score(self, job: CellJob) -> float | None:
        content = RunFolder(job.folder).read_metrics()["eval"]
        tasks = self._scored(list(content))
        values = [content[task][job.config.monitor] for task in tasks]
        return None if None in values else fmean(values)

    def _scored(self, tasks: list[str]) -> list[str]:
        """The tasks by whose mean a trial is judged: the study's, or all of a model that does not predict it."""
        return [self._task] if self._task in tasks else tasks

    def _check_given(self) -> None:
        """Refuse what the command line cannot assign, since each trial has its own value, or all must have one."""
        fixed = [*self._space, *(each.partition("=")[0] for each in ON_VALIDATION)]
        for each in self._study.on_top:
            key = each.partition("=")[0]
            if any(f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") for name in fixed):
                raise UserError(
                    f"--set {each}: trials of '{self._model}' choose their own values of the space "
                    f"({', '.join(self._space)}), and are judged on the valid split; leave it out, or change the space"
                )

    def _check_same_settings(self) -> None:
        base = self._config({}).model_copy(update={"init_from": None})
        space = {key: found.model_dump(mode="json") for key, found in self._space.items()}
        made_of = hashlib.sha256((base.dump() + json.dumps(space)).encode()).hexdigest()
        if self._trials.user_attrs.setdefault("made_of", made_of) != made_of:
            raise UserError(
                f"{self.place}: its trials were made with another config or space; name another --out to begin anew"
            )
        self._trials.set_user_attr("made_of", made_of)

    def _check_same_data(self) -> None:
        before = [read_stamps(RunFolder(self._run(trial)).data) for trial in self.done()]
        config, splits = self._config({}), {split for stamps in before for split in stamps}
        now = current_stamps(config.schema_in_use, splits, config.loader.patience)
        if changes := next(filter(None, (data_changes(stamps, now) for stamps in before)), ""):
            raise UserError(
                f"{self.place}: its trials were made on other data:\n{changes}\nput the data back, or name another "
                "--out to begin anew"
            )

    def _own_values(self) -> dict[str, Any]:
        """The config's own values, as Optuna knows them; without those that lie outside of the space."""
        own = self._config({})
        found: dict[str, Any] = {}
        for key, allowed in self._space.items():
            value = _value(own, key)
            if allowed.choices is not None:
                alike = (text for text in map(json.dumps, allowed.choices) if self._reads_as(key, text, value))
                found.update((key, text) for text in alike)
                continue
            assert allowed.low is not None
            assert allowed.high is not None
            if isinstance(value, float | int) and allowed.low <= value <= allowed.high:
                found[key] = value
        return found

    def _reads_as(self, key: str, text: str, value: Any) -> bool:
        """Whether the config makes this value of a choice: 0.0 of 0, say."""
        try:
            return json.dumps(_value(self._config({key: text}), key)) == json.dumps(value)
        except UserError:  # it does not go with the config's other settings
            return False


def _assignments(params: Mapping[str, Any]) -> Assignments:
    return tuple(f"{key}={value}" for key, value in params.items())


def _value(config: RunConfig, key: str) -> Any:
    """What a config holds under a key, `a.b`; None where nothing."""
    value: Any = config.model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _distribution(allowed: Range, *, whole: bool) -> BaseDistribution:
    """Of which values are drawn: between two numbers whole ones, where the setting is one."""
    if allowed.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in allowed.choices])
    assert allowed.low is not None
    assert allowed.high is not None
    if whole:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log)
    return FloatDistribution(allowed.low, allowed.high, log=allowed.log)


def _first(allowed: Range) -> Any:
    return json.dumps(allowed.choices[0]) if allowed.choices is not None else allowed.low
