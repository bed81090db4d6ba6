"""One day of one arm: its model is trained on the logs of the days before, and serves; a folder that is whole or not.

`OUT/SEED/ARM/day=DDD` has `log.parquet` (what was shown, and what came of it), `counts.npz` (by user and by item),
the run folder of each model that was trained, and last of all `day.json`, without which the day counts for nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_xd.atomic_write import write_json
from torchrec_xd.config import RunConfig
from torchrec_xd.datasets.planted.clock import ClockWorld, Columns
from torchrec_xd.datasets.planted.days import day_path
from torchrec_xd.datasets.planted.platform import Block, Scores, blocks, serve, write_log
from torchrec_xd.datasets.planted.settings import TARGET
from torchrec_xd.datasets.planted.worlds import KINDS, PRESETS
from torchrec_xd.errors import UserError
from torchrec_xd.models import find_model
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Domain, Schema
from torchrec_xd.settings import load_yaml, merge, override, validate
from torchrec_xd.study.simulation.design import TASK, Simulation
from torchrec_xd.study.simulation.measures import Measures
from torchrec_xd.training.column_scores import column_scorer
from torchrec_xd.training.origins import TEACHER
from torchrec_xd.training.train_run import train

ONE_THREAD = {"trainer": {"threads": 1}}
"""Below every config, so that no number depends on how many jobs there are at a time."""
WORLD, LOG, COUNTS, DONE = "world", "log.parquet", "counts.npz", "day.json"


@dataclass(frozen=True)
class ArmDay:
    """A day of an arm; days count from the first one of the test."""

    simulation: Simulation
    study: Path
    """Folder of the study file, from which configs are named."""
    out: Path
    seed: int
    day: int
    arm: str

    @property
    def name(self) -> str:
        """`SEED/ARM/day=DDD`, its folder below `OUT`."""
        return f"{self.seed}/{self.arm}/day={self.day:03d}"

    @property
    def continues(self) -> bool:
        """Whether its models go on from those of the day before."""
        return self.day > 0 and self.simulation.training == "continue"

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.out / self.name

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / DONE).is_file()

    def run(self, model: str) -> Path:
        """The run folder of a model that is trained for it."""
        return self.folder / model

    def on(self, day: int, arm: str | None = None) -> ArmDay:
        """Another day, or another arm too."""
        return replace(self, day=day, arm=arm or self.arm)


def build_world(simulation: Simulation, seed: int) -> ClockWorld:
    """The world of a seed."""
    world = KINDS[PRESETS[simulation.world["preset"]].kind].build(simulation.world_of(seed))
    return world  # type: ignore[return-value]  # the design takes worlds with a clock alone


def models_of(job: ArmDay) -> tuple[str, ...]:
    """What is trained for a day of an arm, the last one is its own: where models go on, parents only if they teach."""
    found: list[str] = []
    for model in reversed(job.simulation.chain(job.arm)):
        found.append(model)
        if job.continues and not _is_taught(job, model):
            break
    return tuple(reversed(found))


def _is_taught(job: ArmDay, model: str) -> bool:
    """Whether a model keeps reading a frozen parent."""
    config = job.simulation.arms[model].config
    assert config is not None
    transfer = find_model(str(load_yaml(job.study / config).get("model", {}).get("name"))).transfer
    return transfer is not None and any(name.startswith(TEACHER) for name in transfer.prefixes)


def model_config(job: ArmDay, model: str, schema: Schema) -> RunConfig:
    """The config of a model that is trained for a day of an arm.

    Raises:
        UserError: it is not as it must be.
    """
    arm = job.simulation.arms[model]
    assert arm.config is not None
    path = job.study / arm.config
    assign = [*job.simulation.assign, *arm.assign, f"seed={job.seed}"]
    if arm.parent is not None:
        assign.append(f"init_from={job.run(arm.parent) if arm.parent in models_of(job) else 'null'}")
    if job.continues:
        assign.append(f"continue_from={job.on(job.day - 1).run(model)}")
    content = merge(ONE_THREAD, {**load_yaml(path), "schema": schema.model_dump(mode="json")})
    config = validate(RunConfig, override(content, assign), f"{path}, as {model}")
    if arm.parent is None and config.init_from is not None:
        raise UserError(
            f"{path}, as {model}: init_from is {config.init_from}, a run outside of the study: set parent: NAME"
        )
    return config


def day_schema(job: ArmDay, schema: Schema) -> Schema:
    """A world's schema whose training rows are those of the days before, and whose test rows are shown by chance today.

    Sources have the world's own rows; the target has those that were shown by chance in the warm-up, and then the logs.
    """
    simulation, today = job.simulation, job.simulation.warmup + job.day
    days = range(max(0, today - (1 if job.continues else simulation.window)), today)
    arms = simulation.served if simulation.logs == "shared" else (job.arm,)

    def own(name: str, day: int) -> list[str]:
        if name != TARGET or day < simulation.warmup:
            return [f"{WORLD}/{day_path(name, 'train', day)}"]
        return [f"{arm}/day={day - simulation.warmup:03d}/{LOG}" for arm in arms]

    domains = {
        name: Domain(
            role=domain.role,
            train=tuple(path for day in days for path in own(name, day)),
            test=f"{WORLD}/{day_path(name, 'train', today)}",
        )
        for name, domain in schema.domains.items()
    }
    return schema.model_copy(update={"domains": domains, "root": (job.out / str(job.seed)).as_posix()})


def run_arm_day(job: ArmDay) -> None:
    """Train and serve.

    Raises:
        UserError: a model diverged, or nobody asked this arm for anything.
        InterruptedRunError: it was asked to stop.
    """
    simulation, number = job.simulation, job.simulation.warmup + job.day
    world = build_world(simulation, job.seed)
    schema = day_schema(job, world.schema(simulation.world["preset"]))
    trained = _train(job, schema)
    day, places = world.day(number), simulation.places
    measures = Measures(len(day.items(0).id_N), predicts=simulation.arms[job.arm].policy is None)

    def logged(scores: Scores) -> Iterator[Columns]:
        for block in _blocks(job, world, day, number):
            served = serve(block, scores, places, simulation.exploration_of(job.arm))
            measures.add(served)
            yield served.columns

    with _scores(job) as scores:
        write_log(job.folder / LOG, logged(scores))
    partial = job.folder / f"partial-{COUNTS}"
    np.savez(partial, **measures.counts())  # type: ignore[arg-type]
    partial.replace(job.folder / COUNTS)
    found = {"day": job.day, **measures.numbers(), "random_traffic": trained}
    write_json(job.folder / DONE, found)
    if job.day:
        _forget_runs(job.on(job.day - 1))


def _blocks(job: ArmDay, world: ClockWorld, day: Any, number: int) -> Iterator[Block]:
    simulation = job.simulation
    arms = simulation.served
    return blocks(
        world,
        day,
        number,
        requests=simulation.requests,
        candidates=simulation.candidates,
        places=simulation.places,
        arm=arms.index(job.arm),
        arms=len(arms),
    )


def _train(job: ArmDay, schema: Schema) -> dict[str, Any] | None:
    """Train what the arm needs; what the last model is worth on rows shown by chance."""
    found: dict[str, Any] | None = None
    for model in models_of(job):
        run = RunFolder(job.run(model))
        if not run.finished():
            shutil.rmtree(run.path, ignore_errors=True)
            train(model_config(job, model, schema), run.path)
        found = run.read_metrics()["eval"].get(TASK)
    return found


@contextmanager
def _scores(job: ArmDay) -> Iterator[Scores]:
    """What the arm ranks by."""
    policy = job.simulation.arms[job.arm].policy
    if policy is not None:
        yield lambda columns, prob_R: prob_R
        return
    with column_scorer(job.run(job.arm), TASK) as scorer:
        yield lambda columns, prob_R: scorer(columns)


def _forget_runs(job: ArmDay) -> None:
    """Weights of yesterday are not needed any more; logs and numbers stay."""
    for model in job.simulation.chain(job.arm):
        shutil.rmtree(job.run(model), ignore_errors=True)


def read_day(job: ArmDay) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers and the counts of a finished day."""
    with np.load(job.folder / COUNTS) as counts:
        return json.loads((job.folder / DONE).read_text(encoding="utf-8")), dict(counts)
