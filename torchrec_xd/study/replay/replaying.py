"""`torchrec-xd replay`: go through a history slice by slice under several policies, then report the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrec_xd.atomic_write import write_json
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets import prepare_world
from torchrec_xd.errors import UserError
from torchrec_xd.log import RunLog
from torchrec_xd.run_lock import LOCK, run_lock
from torchrec_xd.schema import Schema
from torchrec_xd.study.cells import WORLDS
from torchrec_xd.study.checks import check_run
from torchrec_xd.study.pool import work
from torchrec_xd.study.replay.design import Replay, load_replay
from torchrec_xd.study.replay.history import History, look_at, rows_of_tables
from torchrec_xd.study.replay.measures import measured
from torchrec_xd.study.replay.pages import save_replay
from torchrec_xd.study.replay.slices import Slice, find_slices
from torchrec_xd.study.replay.steps import Step, StepJob, Steps, costs_of
from torchrec_xd.study.replay.verdicts import replay_verdicts
from torchrec_xd.study.results import hardware, versions
from torchrec_xd.writable import check_output_folder

IDENTITY = "replay.json"
_MAY_CHANGE = {"seeds", "policies", "reference", "metrics", "samples", "block", "slices"}
"""Keys on which no step depends that is done; what the slices hold is compared by itself."""


def replay(
    path: str | Path,
    out: str | Path,
    *,
    seeds: int | None = None,
    assign: Sequence[str] = (),
    workers: int = 1,
) -> dict[str, str]:
    """Score every slice of a history, then train on it, by several policies; what is done is not done again.

    Args:
        path: YAML file of the replay (docs/replay.md).
        out: folder of its steps, `SEED/POLICY/DATE`, and of its results, `results.json`, `.md` and `.html`.
        seeds: number of seeds. Default: the file's.
        assign: `a.b=VALUE` on top of every config.
        workers: steps at the same time; those of a seed and policy come one after the other.

    Returns:
        The steps that failed, by name, each with its reason. The results list these too, and compare the others.

    Raises:
        UserError: before anything is trained: something in the file, its configs, its slices or `out` is not valid, or
            `out` holds another replay.
        InterruptedRunError: it was stopped; the same call goes on.
    """
    path, out = Path(path), Path(out)
    chosen = load_replay(path, seeds, tuple(assign))
    check_output_folder(out, "--out")
    with run_lock(out, "--out"):
        return _replay(chosen, path, out, workers)


def _replay(chosen: Replay, path: Path, out: Path, workers: int) -> dict[str, str]:
    design = chosen.model_dump(mode="json", by_alias=True, exclude=_MAY_CHANGE)
    _refuse_another(out, {"replay": design})
    schema, slices = _data(chosen, path)
    if "incremental_without_growth" in chosen.policies and not chosen.grows and not schema.living_tables():
        raise UserError("policies: incremental_without_growth needs grows: [FEATURE, …], features whose tables grow")
    history = look_at(schema, slices, chosen.warm_up)
    steps = Steps(chosen, path, out, schema, slices, rows_of_tables(schema, chosen.grows, history))
    _check_models(steps)
    identity = {"replay": design, "configs": _configs(steps), "slices": [each.identity() for each in slices]}
    _refuse_another(out, identity)
    with RunLog(out / "logs") as log:
        write_json(out / IDENTITY, identity)
        queue = _Queue(steps)
        log.say(
            f"{path.stem}: {len(slices)} slices, {len(steps.every)} steps, {queue.left} of them to be done, in {out}"
        )
        if queue.left:
            _work(queue, len(steps.every), out / "logs", log, workers)
        log.say("comparing")
        done = [step for step in steps.every if step.done.is_file()]
        save_replay(_results(path.stem, steps, history, done, queue.failed), out / "results")
    return queue.failed


def _data(chosen: Replay, path: Path) -> tuple[Schema, list[Slice]]:
    if chosen.world is None:
        assert chosen.schema_file is not None
        assert chosen.slices is not None
        schema = load_schema(path.parent / chosen.schema_file)
        return schema, find_slices(schema, chosen.slices, chosen.warm_up)
    folder = WORLDS / path.stem
    settings = {name: value for name, value in chosen.world.items() if name != "preset"}
    if settings.get("test_days"):
        raise UserError("world.test_days: every day is scored before it is trained on; leave test_days out")
    prepare_world(chosen.world["preset"], folder, settings, lambda line: None)
    schema = load_schema(folder / "schema.yaml")
    if not all("day=" in domain.paths("train")[0] for domain in schema.domains.values()):
        raise UserError(f"world.preset: '{chosen.world['preset']}' has no days; name one that has, such as feed_days")
    return schema, find_slices(schema, {name: f"{name}/train/day=*" for name in schema.domains}, chosen.warm_up)


def _check_models(steps: Steps) -> None:
    """What the runs of the warm-up would refuse."""
    configs, faults = steps.first_configs(), list[str]()
    for model, config in configs.items():
        parents = [configs[name] for name in steps.replay.ancestors(model)]
        try:
            check_run(model, config, parents)
        except UserError as error:
            faults += str(error).splitlines()
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def _configs(steps: Steps) -> dict[str, Any]:
    """What the runs of the models have in common, whatever the step."""
    configs = {}
    for model, config in steps.first_configs().items():
        content = config.model_dump(mode="json", by_alias=True)
        for key in ("init_from", "seed", "sharding"):
            del content[key]
        for domain in content["schema"]["domains"].values():
            domain.clear()
        configs[model] = content
    return configs


def _refuse_another(out: Path, identity: dict[str, Any]) -> None:
    """Whether `out` holds this replay, of as many slices or fewer, or nothing."""
    path = out / IDENTITY
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if others := sorted(each.name for each in out.iterdir() if each.name not in ("logs", LOCK)):
            raise UserError(f"--out {out} holds no replay but {others[0]}; name another folder") from None
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; name another --out") from None
    for part, here in identity.items():
        there = before[part]
        same = here[: len(there)] if part == "slices" else here  # there may be newer ones
        if changed := _difference(there, same, part):
            raise UserError(f"--out {out} holds another replay ({changed}); put it back, or name another --out")


def _difference(there: Any, here: Any, key: str) -> str:
    """The first thing that differs, by its key; empty where nothing does."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [(f"{key}.{name}", there.get(name), here.get(name)) for name in {**there, **here}]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(f"{key}.{i}", one, other) for i, (one, other) in enumerate(zip(there, here, strict=True))]
    else:
        return "" if there == here else f"{key} was {_short(there)}, is {_short(here)}"
    return next((found for name, one, other in pairs if (found := _difference(one, other, name))), "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


class _Queue:
    """Steps that are still to be done, each after the one that it goes on from."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._waiting = steps, list(steps.left())
        self.done = {step.name for step in steps.every} - {step.name for step in self._waiting}
        self.failed: dict[str, str] = {}

    @property
    def left(self) -> int:
        return len(self._waiting)

    def take(self) -> StepJob | None:
        for step in list(self._waiting):
            if step.before in self.failed:
                self._waiting.remove(step)
                self.failed[step.name] = f"not started: it goes on from {step.before}, which failed"
            elif step.before is None or step.before in self.done:
                self._waiting.remove(step)
                return self._steps.job(step)
        return None

    def finish(self, job: StepJob, fault: str | None) -> None:
        if fault is None:
            self.done.add(job.name)
        else:
            self.failed[job.name] = fault


def _work(queue: _Queue, total: int, logs: Path, log: RunLog, workers: int) -> None:
    with log.progress(total, len(queue.done)) as progress:

        def finish(job: StepJob, fault: str | None) -> None:
            queue.finish(job, fault)
            progress.update(len(queue.done) + len(queue.failed), job.name)

        work(queue.take, finish, workers=workers, logs=logs)


def _results(name: str, steps: Steps, history: History, done: Sequence[Step], failed: dict[str, str]) -> dict[str, Any]:
    """The content of results.json."""
    chosen, slices = steps.replay, steps.slices
    scores = list(measured(steps, done))
    costs = [(step, model, cost) for step in done for model, cost in costs_of(step).items()]
    tables: dict[str, list[int | None]] = {
        table.name.removeprefix("t_"): [by_name.get(table.name, table.rows) for by_name in steps.rows]
        for table in steps.schema.tables()
    }
    tables |= {name.removeprefix("t_"): [None] * len(slices) for name in steps.schema.living_tables()}
    for step, _, cost in costs:
        if step.policy in (None, chosen.reference):
            for table, rows in cost.get("tables", {}).items():
                tables[table][step.number - 1] = max(rows, tables[table][step.number - 1] or 0)
    return {
        "replay": name,
        "reference": chosen.reference,
        "policies": list(chosen.policies),
        "seeds": chosen.seeds,
        "samples": chosen.samples,
        "warm_up": chosen.warm_up,
        "window": chosen.window,
        "slices": [{"date": each.date, "rows": each.rows} for each in slices],
        "tables": {
            table: {"unseen": history.unseen[table], "ids": history.ids[table], "rows": rows}
            for table, rows in tables.items()
        },
        "grows": list(chosen.grows),
        "drift": history.drift,
        "scores": scores,
        "costs": [
            {"policy": step.policy, "seed": step.seed, "slice": slices[step.number].date, "model": model, **cost}
            for step, model, cost in costs
        ],
        "verdicts": replay_verdicts(chosen, scores, slices[chosen.warm_up].date),
        "failed": failed,
        "versions": versions(),
        "hardware": hardware(),
    }
