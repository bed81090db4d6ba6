"""The steps of a replay: a seed and policy train what a slice is scored with, then score it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torchrec_xd.atomic_write import write_json
from torchrec_xd.config import RunConfig, load_config
from torchrec_xd.data.filesystems import join
from torchrec_xd.data.vocabularies import read_vocabularies
from torchrec_xd.models import find_model
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.study.replay.design import Policy, Replay
from torchrec_xd.study.replay.slices import Slice
from torchrec_xd.training.inference import score
from torchrec_xd.training.origins import TEACHER
from torchrec_xd.training.train_run import train

WARM_UP = "warm_up"
"""Folder of what all policies begin with."""
DONE = "step.json"
_CLOSED = {"admit": 2**62, "expire": None}
"""Of a vocabulary: no key comes any more, and none goes."""


@dataclass(frozen=True)
class Step:
    """Of a seed and policy: a slice, and the runs that it is scored with."""

    seed: int
    policy: Policy | None
    """None: the warm-up, which all policies have in common."""
    number: int
    """Of the slice that is scored."""
    folder: Path
    name: str
    """`SEED/POLICY/DATE`, its folder below the replay's."""
    before: str | None
    """Name of the step that it comes after."""

    def run(self, model: str) -> Path:
        """Folder of a model's run, if it trains one."""
        return self.folder / model

    def scores(self, model: str, domain: str) -> Path:
        """A model's predictions for the rows of a domain."""
        return self.folder / f"{model}-{domain}.parquet"

    @property
    def done(self) -> Path:
        """There once all of it is; holds what training took, by model."""
        return self.folder / DONE


@dataclass(frozen=True)
class Scored:
    """Rows to be scored by a run."""

    run: Path
    rows: str
    domain: str
    out: Path


@dataclass(frozen=True)
class StepJob:
    """The work of a step, for a process of its own."""

    name: str
    runs: tuple[tuple[str, RunConfig, Path], ...]
    """Model, config and folder of the runs to be trained, in order."""
    scored: tuple[Scored, ...]
    done: Path
    unneeded: tuple[Path, ...]
    """Run folders that no later step needs once this one is done."""

    def run(self) -> None:
        """Train, score, write down that it is done, and remove what is not needed any more."""
        costs: dict[str, Any] = {}
        for model, config, folder in self.runs:
            cost = folder.with_name(f"{model}-cost.json")
            if not cost.is_file():
                if not RunFolder(folder).exists():  # killed before it was a run
                    shutil.rmtree(folder, ignore_errors=True)
                write_json(cost, _train(config, folder))
            costs[model] = json.loads(cost.read_text(encoding="utf-8"))
        for each in self.scored:
            score(each.run, each.rows, each.out, each.domain, "last", parts=True)
        write_json(self.done, costs)
        for folder in self.unneeded:
            shutil.rmtree(folder, ignore_errors=True)


def _train(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What it took, the measuring of the slice that follows included; of a run that goes on, since then.

    Where tables have vocabularies, also how many rows they have.
    """
    cpu, begun = time.process_time(), time.perf_counter()
    rows = train(config, folder, restartable=True)["train"]["rows"]
    found = {"rows": rows, "cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - begun}
    if not config.schema_in_use.living_tables():
        return found
    tables = read_vocabularies(RunFolder(folder).vocabularies).tables
    return {**found, "tables": {name.removeprefix("t_"): table.rows for name, table in tables.items()}}


class Steps:
    """All steps of a replay.

    Args:
        replay: what is compared.
        path: its file.
        out: folder of all steps.
        schema: of the data.
        slices: from the oldest to the newest.
        rows: for every slice the rows of growing tables, once it has been trained on (`rows_of_tables`).
    """

    def __init__(
        self,
        replay: Replay,
        path: Path,
        out: Path,
        schema: Schema,
        slices: Sequence[Slice],
        rows: Sequence[dict[str, int]],
    ) -> None:
        self.replay, self.path, self.out, self.schema, self.slices, self.rows = replay, path, out, schema, slices, rows

    @cached_property
    def every(self) -> list[Step]:
        """Each after the one that it goes on from."""
        seeds, warm_up = range(self.replay.seeds), self.replay.warm_up
        later = [(p, n) for p in self.replay.policies for n in range(warm_up + 1, len(self.slices))]
        return [self.step(s, policy, n) for s in seeds for policy, n in [(None, warm_up), *later]]

    def step(self, seed: int, policy: Policy | None, number: int) -> Step:
        """The step that scores a slice; the first one is that of the warm-up, whatever the policy."""
        warm_up = self.replay.warm_up
        policy = None if number == warm_up else policy
        name = f"{seed}/{policy or WARM_UP}/{self.slices[number].date}"
        before = None if policy is None else self.step(seed, policy, number - 1).name
        return Step(seed, policy, number, self.out / name, name, before)

    def job(self, step: Step) -> StepJob:
        """The work of a step."""
        seed, policy, number = step.seed, step.policy, step.number
        models = self.replay.in_order()
        trains = policy != "never"
        runs = tuple((m, self.config(step, m), step.run(m)) for m in models) if trains else ()
        scored_with = step if trains else self.step(seed, None, self.replay.warm_up)
        scored = tuple(
            Scored(
                scored_with.run(model),
                join(self.schema.root, self.slices[number].files[domain]),
                domain,
                step.scores(model, domain),
            )
            for model in models
            for domain in self.domains(model)
        )
        earlier = [self.step(seed, policy, n) for n in range(self.replay.warm_up + 1, number)] if policy else []
        unneeded = tuple(before.run(model) for before in earlier for model in models)
        return StepJob(step.name, runs, scored, step.done, unneeded)

    def domains(self, model: str) -> tuple[str, ...]:
        """The domains whose rows a model scores; none where it is not shown."""
        if not self.replay.models[model].shown:
            return ()
        return tuple(self._first[model].schema_in_use.domains)

    @cached_property
    def _first(self) -> dict[str, RunConfig]:
        """Configs of the warm-up of the first seed."""
        step = self.step(0, None, self.replay.warm_up)
        return {model: self.config(step, model) for model in self.replay.models}

    def first_configs(self) -> dict[str, RunConfig]:
        """Configs of the warm-up of the first seed, by model, each after the one that it starts from."""
        return {model: self._first[model] for model in self.replay.in_order()}

    def config(self, step: Step, model: str) -> RunConfig:
        """The config of a model's run in a step.

        Raises:
            UserError: it is not as it must be.
        """
        own, policy = self.replay.models[model], step.policy
        continues = policy is not None and policy != "scratch"
        path = self.path.parent / own.config
        assign = [*self.replay.assign, *own.assign, *(own.continued if continues else ()), f"seed={step.seed}"]
        if own.parent is not None:
            assign.append(f"init_from={step.run(own.parent)}")
        schema = self._schema(step)
        content = load_config(path, assign, self._schema_file()).model_dump(mode="json", by_alias=True)
        content |= {"schema": schema.model_dump(mode="json"), "continue_from": None, "evaluate_on": "test"}
        content["checkpoint"]["keep"] = 1
        if schema.living_tables() and self._dated:
            content["day"] = self.slices[step.number - 1].date
        if continues:
            before = self.step(step.seed, policy, step.number - 1)
            content["continue_from"] = str(before.run(model))
            content["continue_optimizer"] = policy != "incremental_without_state"
            if own.parent is not None and not _taught(content["model"]["name"]):
                first = self.step(step.seed, None, self.replay.warm_up)
                content["init_from"] = str(first.run(own.parent))
        return validate(RunConfig, content, f"{path}, as {step.name}/{model}")

    def _schema_file(self) -> Path:
        if self.replay.schema_file is not None:
            return self.path.parent / self.replay.schema_file
        return Path(self.schema.root) / "schema.yaml"

    def _schema(self, step: Step) -> Schema:
        """Trains on slices before the one that is scored, which is its test split."""
        number, warm_up = step.number, self.replay.warm_up
        first = {None: 0, "scratch": max(0, number - (self.replay.window or number))}.get(step.policy, number - 1)
        trained = self.slices[first:number]
        domains = {
            name: domain.model_copy(
                update={
                    "train": tuple(each.files[name] for each in trained),
                    "valid": None,
                    "test": self.slices[number].files[name],
                }
            )
            for name, domain in self.schema.domains.items()
        }
        fixed = step.policy == "incremental_without_growth"
        rows = self.rows[warm_up - 1 if fixed else number - 1]
        features = []
        for feature in self.schema.features:
            update: dict[str, Any] = {}
            if feature.has_table and feature.table_name in rows:
                update = {"rows": rows[feature.table_name], "hash": "drop"}
            elif feature.vocabulary is not None and fixed:
                update = {"vocabulary": feature.vocabulary.model_copy(update=_CLOSED)}
            features.append(feature.model_copy(update=update))
        return self.schema.model_copy(update={"domains": domains, "features": tuple(features)})

    @cached_property
    def _dated(self) -> bool:
        """Whether the slices are days, so that vocabularies count days and not slices."""
        return all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", each.date) for each in self.slices)

    def left(self) -> Iterator[Step]:
        """Steps that are not done, each after the one that it goes on from."""
        return (step for step in self.every if not step.done.is_file())


def _taught(model: str) -> bool:
    """Whether a model has a frozen teacher, which comes from `init_from` at every step."""
    transfer = find_model(model).transfer
    return transfer is not None and any(name.startswith(TEACHER) for name in transfer.prefixes)


def costs_of(step: Step) -> dict[str, Any]:
    """What training took in a step that is done, by model."""
    content: dict[str, Any] = json.loads(step.done.read_text(encoding="utf-8"))
    return content
