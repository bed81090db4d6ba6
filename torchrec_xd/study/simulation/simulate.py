"""`torchrec-xd simulate`: an A/B test over days, arm by arm and day by day; what is finished is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrec_xd.atomic_write import write_json
from torchrec_xd.config import RunConfig
from torchrec_xd.datasets import prepare_world
from torchrec_xd.errors import UserError
from torchrec_xd.log import RunLog
from torchrec_xd.prepare.manifest import code
from torchrec_xd.run_lock import LOCK, run_lock
from torchrec_xd.study.checks import parent_run
from torchrec_xd.study.simulation.arm_days import WORLD, ArmDay, build_world, model_config, read_day
from torchrec_xd.study.simulation.design import TASK, Simulation
from torchrec_xd.study.simulation.pages import save_simulation
from torchrec_xd.study.simulation.results import simulation_results
from torchrec_xd.study.simulation.workers import work
from torchrec_xd.training.building import build
from torchrec_xd.writable import check_output_folder

STUDY, RESULTS = "simulation.json", "results"

Work = Callable[..., None]
"""As `workers.work`."""


class _Queue:
    """Days of arms that are still to be done, each after what it learns from."""

    def __init__(self, simulation: Simulation, study: Path, out: Path) -> None:
        self.every = [
            ArmDay(simulation, study, out, seed, day, arm)
            for day in range(simulation.days)
            for seed in range(simulation.seeds)
            for arm in simulation.served
        ]
        self._simulation = simulation
        self.finished = {job.name for job in self.every if job.finished()}
        self.failed: dict[str, str] = {}
        self._waiting = [job for job in self.every if job.name not in self.finished]

    def take(self) -> ArmDay | None:
        for job in self._waiting:
            arms = self._simulation.served if self._simulation.logs == "shared" else (job.arm,)
            if not job.day or all(job.on(job.day - 1, arm).name in self.finished for arm in arms):
                self._waiting.remove(job)
                return job
        return None

    def finish(self, job: ArmDay, fault: str | None) -> None:
        if fault is None:
            self.finished.add(job.name)
        else:
            self.failed[job.name] = fault


def run_simulation(
    simulation: Simulation, study: Path, out: Path, *, jobs: int = 1, work_off: Work = work
) -> dict[str, Any]:
    """Do what is missing of a simulation, and write its results into `out`: `results.json`, `.md` and `.html`.

    Args:
        simulation: what is simulated.
        study: its file.
        out: folder of its worlds, `SEED/world`, of the days of its arms, `SEED/ARM/day=DDD`, and of the results.
        jobs: days of arms that are done at the same time, a process and a thread each; no number depends on it.
        work_off: what runs the jobs.

    Returns:
        The results.

    Raises:
        UserError: before anything is written: a config is not as it must be, or `out` holds something else; or later:
            a day of an arm failed, and the same command tries it again.
        InterruptedRunError: it was stopped; the same command goes on from the last complete day of each arm.
    """
    check_output_folder(out, "--out")
    meaning = _check(simulation, study.parent, out)
    with run_lock(out, "--out"):
        write_json(out / STUDY, meaning, indent=1)
        with RunLog(out / "logs") as log:
            for seed in range(simulation.seeds):
                overrides = simulation.overrides(seed)
                prepare_world(simulation.world["preset"], out / str(seed) / WORLD, overrides, lambda line: None)
            queue = _Queue(simulation, study.parent, out)
            log.say(f"{study.stem}: {len(queue.every)} days of arms, {len(queue.finished)} of them done, in {out}")
            _work(queue, log, jobs, out / "logs", work_off)
            if queue.failed:
                lines = "\n".join(f"  {name}: {reason}" for name, reason in queue.failed.items())
                raise UserError(f"{len(queue.failed)} days failed; the same command tries them again:\n{lines}")
            results = simulation_results(study.stem, simulation, [(job, *read_day(job)) for job in queue.every])
            save_simulation(results, out / RESULTS)
    return results


def _work(queue: _Queue, log: RunLog, jobs: int, logs: Path, work_off: Work) -> None:
    with log.progress(len(queue.every), len(queue.finished)) as progress:

        def finish(job: ArmDay, fault: str | None) -> None:
            queue.finish(job, fault)
            progress.update(len(queue.finished), job.name)

        work_off(queue.take, finish, workers=jobs, logs=logs)


def _check(simulation: Simulation, folder: Path, out: Path) -> dict[str, Any]:
    """What decides every number of a simulation, seeds apart; all of it is checked as far as it can be without data.

    Raises:
        UserError: a model cannot be built, does not predict a click, or `out` holds something else.
    """
    schema = build_world(simulation, 0).schema(simulation.world["preset"])
    configs = {}
    for arm in simulation.served:
        job = ArmDay(simulation, folder, out, 0, 0, arm)
        parents: list[RunConfig] = []
        for model in simulation.chain(arm):
            config = model_config(job, model, schema)
            try:
                build(config, parent_run(config, parents[::-1]))
            except UserError as error:
                raise UserError("\n".join(f"arms.{model}: {line}" for line in str(error).splitlines())) from None
            parents.append(config)
            content = config.model_copy(update={"seed": 0, "init_from": None}).dump()
            configs[model] = hashlib.sha256(content.encode()).hexdigest()[:16]
        tasks = [task.name for task in parents[-1].schema_in_use.tasks] if parents else [TASK]
        if TASK not in tasks:
            raise UserError(
                f"arms.{arm}: does not predict '{TASK}' but {', '.join(tasks)}; set shown: false where others only "
                "start from it"
            )
    own = simulation.model_dump(mode="json", by_alias=True, exclude={"seeds", "samples"})
    meaning = {**own, "configs": configs, "code of worlds": code()}
    _refuse_other(meaning, out)
    return meaning


def _refuse_other(meaning: dict[str, Any], out: Path) -> None:
    there = out / STUDY
    if not there.is_file():
        others = [path.name for path in out.iterdir() if path.name != LOCK] if out.is_dir() else []
        if others:
            raise UserError(f"--out {out} holds something else ({min(others)}); name an empty folder, or a new one")
        return
    try:
        before = json.loads(there.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{there}: cannot be read ({error}); name another --out") from None
    changed = [key for key in {**before, **meaning} if before.get(key) != meaning.get(key)]
    if changed:
        raise UserError(
            f"--out {out} holds another simulation ({', '.join(changed)} differ); only `seeds` and `samples` may "
            "change: name another folder, or delete it"
        )
