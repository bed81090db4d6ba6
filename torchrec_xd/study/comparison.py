"""`torchrec-xd compare`: train what is missing of a study, then report the results."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torchrec_xd.log import RunLog
from torchrec_xd.run_lock import run_lock
from torchrec_xd.study.cells import Cell, cells, prepare_worlds
from torchrec_xd.study.checks import check_cells
from torchrec_xd.study.design import Study, Tuned, load_study, load_tuned, select
from torchrec_xd.study.pages import save_results
from torchrec_xd.study.pool import work
from torchrec_xd.study.results import study_results
from torchrec_xd.study.scores import outside_scores
from torchrec_xd.study.verdicts import power_warnings
from torchrec_xd.study.worker import CellJob
from torchrec_xd.writable import check_output_folder


def compare(
    study: str | Path,
    out: str | Path,
    *,
    data: Sequence[str] = (),
    models: Sequence[str] = (),
    seeds: int | None = None,
    assign: Sequence[str] = (),
    tuned: str | Path | None = None,
    reference: str | None = None,
    workers: int = 1,
) -> dict[str, str]:
    """Compare models over data sets and seeds; what is finished is not trained again.

    Args:
        study: YAML file of the study (docs/compare.md).
        out: folder of its runs, `DATA/SEED/MODEL`, and of its results, `results.json`, `.md` and `.html`.
        data: only these data sets. Default: all.
        models: only these models, the reference, and what they start from. Default: all.
        seeds: number of seeds. Default: the study's.
        assign: `a.b=VALUE` on top of every config.
        tuned: the tuned.json that `tune` wrote, or results.json of a comparison that took one.
        reference: compare with this model; the results are then called `results-REFERENCE`. Default: the study's.
        workers: runs that are trained at the same time.

    Returns:
        The runs that failed, by name, each with its reason. The results list these too, and compare the others.

    Raises:
        UserError: before anything is trained: something in the study, its configs, given scores or `out` is not valid.
        InterruptedRunError: it was stopped; the same call goes on.
    """
    chosen = select(load_study(Path(study), reference), data, models, seeds, tuple(assign))
    name = results_name(reference)
    settings = None if tuned is None else load_tuned(Path(tuned))
    return run_study(chosen, Path(study), Path(out), name, workers=workers, tuned=settings)


def results_name(reference: str | None) -> str:
    """Name of a study's result files, without their endings."""
    return "results" if reference is None else f"results-{reference}"


class _Queue:
    """Cells that are still to be run, each after the one that it starts from."""

    def __init__(self, every: Sequence[Cell], finished: Iterable[str]) -> None:
        self.finished = set(finished)
        self.failed: dict[str, str] = {}
        self._waiting = [cell for cell in every if cell.name not in self.finished]

    def take(self) -> CellJob | None:
        for cell in list(self._waiting):
            if cell.before in self.failed:
                self._waiting.remove(cell)
                self.failed[cell.name] = f"not started: it starts from {cell.before}, which failed"
            elif cell.before is None or cell.before in self.finished:
                self._waiting.remove(cell)
                return CellJob(cell.name, cell.config, cell.folder, cell.task)
        return None

    def finish(self, job: CellJob, fault: str | None) -> None:
        if fault is None:
            self.finished.add(job.name)
        else:
            self.failed[job.name] = fault


def run_study(
    study: Study, path: Path, out: Path, name: str = "results", *, workers: int = 1, tuned: Tuned | None = None
) -> dict[str, str]:
    """Train and score what is missing, and write the results into `out`.

    Args:
        study: what is compared.
        path: its file.
        out: folder of all runs, `DATA/SEED/MODEL`, and of the results.
        name: of the results' files, .json, .md and .html.
        workers: processes that train at the same time.
        tuned: what `tune` found.

    Returns:
        The cells that failed, by name, each with its reason. The results list these too, and compare the others.

    Raises:
        UserError: before anything is trained: something in the study, its configs, given scores or `out` is not as it
            must be.
        InterruptedRunError: it was stopped; the same command goes on.
    """
    check_output_folder(out, "--out")
    with run_lock(out, "--out"), RunLog(out / "logs") as log:
        prepare_worlds(study, log.say)
        every = cells(study, path.parent, out, tuned)
        outside = outside_scores(study, path.parent, every)
        queue = _Queue(every, [cell.name for cell in every if cell.finished()])
        left = [cell for cell in every if cell.name not in queue.finished]
        warnings = [*check_cells(every, left), *power_warnings(study)]
        log.say(f"{path.stem}: {len(every)} runs, {len(left)} of them to be trained, in {out}")
        for line in warnings:
            log.say(f"warning: {line}")
        if left:
            _train(queue, len(every), out / "logs", log, workers)
        log.say("comparing")
        done = [cell for cell in every if cell.name in queue.finished]
        results = {
            **study_results(path.stem, study, [*done, *outside], warnings),
            "failed": queue.failed,
            "tuned": None if tuned is None else _settings(study, tuned),
        }
        save_results(results, out / name)
    return queue.failed


def _settings(study: Study, tuned: Tuned) -> dict[str, Any]:
    """What `tune` chose, for every data set of the study."""
    where = {data: entry.tuned_on or data for data, entry in study.data.items()}
    return {"trials": tuned.trials, "on": where, "best": {data: tuned.best[place] for data, place in where.items()}}


def _train(queue: _Queue, total: int, logs: Path, log: RunLog, workers: int) -> None:
    running: list[str] = []
    with log.progress(total, len(queue.finished)) as progress:

        def show() -> None:
            progress.update(len(queue.finished) + len(queue.failed), ", ".join(running))

        def take() -> CellJob | None:
            job = queue.take()
            if job is not None:
                running.append(job.name)
                show()
            return job

        def finish(job: CellJob, fault: str | None) -> None:
            running.remove(job.name)
            queue.finish(job, fault)
            show()

        work(take, finish, workers=workers, logs=logs)


def commands(study: Study, path: Path, out: Path, tuned: Tuned | None = None) -> list[str]:
    """A TorchX command for every run that is left, those that others start from first; `compare` then collects them.

    Their resolved configs are written to `out/configs`.

    Raises:
        UserError: something in the study, its configs or `out` is not as it must be.
    """
    prepare_worlds(study, lambda line: None)
    left = [cell for cell in cells(study, path.parent, out, tuned) if not (cell.finished() or cell.trained())]
    lines: list[str] = []
    for depth in range(len(study.models)):
        stage = [cell for cell in left if len(study.ancestors(cell.model)) == depth]
        if stage and lines:
            lines.append("# when those above have finished:")
        for cell in stage:
            config = out / "configs" / f"{cell.name}.yaml"
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(cell.config.dump(), encoding="utf-8")
            words = ["launch/components.py:train", "--config", str(config), "--run_dir", str(cell.folder)]
            lines.append(f"torchx run {shlex.join(words)}")
    return lines
