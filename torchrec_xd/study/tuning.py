"""`torchrec-xd tune`: the same number of tries for every model, judged on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from torchrec_xd.atomic_write import write_text
from torchrec_xd.errors import UserError
from torchrec_xd.json_lines import drop_unfinished_line
from torchrec_xd.log import RunLog
from torchrec_xd.run_lock import run_lock
from torchrec_xd.settings import merge
from torchrec_xd.study.cells import prepare_worlds
from torchrec_xd.study.checks import check_run
from torchrec_xd.study.design import Study, Tuned, load_tuned
from torchrec_xd.study.pool import work
from torchrec_xd.study.search import Search
from torchrec_xd.study.worker import CellJob
from torchrec_xd.writable import check_output_folder

Searches = Mapping[tuple[str, str], Search]
"""Data set and model to its trials."""


def tune(study: Study, path: Path, out: Path, trials: int, *, workers: int = 1) -> dict[str, str]:
    """Give every model of a study so many trials on every data set; writes `out/tuned.json`.

    A model that others start from is tuned before them, and they start from its best run. The same command goes on
    where it was stopped, and adds trials where `trials` has grown. What `out/tuned.json` holds of other models and data
    sets of the study stays, if it is of as many trials.

    Returns:
        Trials that failed, which count like others: run to reason.

    Raises:
        UserError: before anything is trained: nothing to tune, no space, a config that is not as it must be, trials in
            `out` that were made of other settings, or settings in `out/tuned.json` that were found with another number
            of trials; at the end: a model of which every trial failed.
        InterruptedRunError: it was stopped; the same command goes on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_output_folder(out, "--out")
    if not _searched(study):
        where = ", ".join(f"{data}: {entry.tuned_on}" for data, entry in study.data.items())
        raise UserError(f"nothing to tune: all data take the settings of others (tuned_on: {where}); tune those")
    failed: dict[str, str] = {}
    with run_lock(out, "--out"), RunLog(out / "logs") as log:
        prepare_worlds(study, log.say)
        before = _before(study, path.stem, trials, out / "tuned.json")
        searches = _searches(study, path.parent, out, log.say)
        _check_data(searches)
        log.say(f"{path.stem}: {len(searches)} searches of {trials} trials, in {out}")
        with log.progress(len(searches) * trials, _done(searches)) as progress:

            def take() -> CellJob | None:
                for search in searches.values():
                    while search.ready(trials):
                        begun = search.begin()
                        if isinstance(begun, CellJob):
                            return begun
                        failed[begun] = str(search.fault)
                        log.say(f"{begun}: {search.fault}")
                return None

            def finish(job: CellJob, fault: str | None) -> None:
                search = next(search for search in searches.values() if search.running == job)
                search.end(fault)
                if search.fault is not None:
                    failed[job.name] = search.fault
                progress.update(_done(searches), job.name)

            work(take, finish, workers=workers, logs=out / "logs")
        found = _tuned(study, path.stem, trials, searches, before)
        write_text(out / "tuned.json", found.model_dump_json(indent=1) + "\n")
    return failed


def _searches(study: Study, folder: Path, out: Path, say: Callable[[str], None]) -> Searches:
    storage = _journal(out / "tuning.journal", say)
    found: dict[tuple[str, str], Search] = {}
    for data in _searched(study):
        for model in study.trained(data):
            before = study.models[model].parent
            trials = optuna.create_study(
                storage=storage, study_name=f"{data}/{model}", direction="maximize", load_if_exists=True
            )
            place = out / data / model
            search = Search(study, folder, place, trials, found[data, before] if before else None)
            if search.outside:
                say(
                    f"{data}/{model}: its config lies outside of the space ({', '.join(search.outside)}): no trial "
                    "is the config as it is"
                )
            found[data, model] = search
    return found


def _journal(path: Path, say: Callable[[str], None]) -> JournalStorage:
    """The trials in a journal, whose last line may be unfinished."""
    if path.exists() and (line := drop_unfinished_line(path)):
        say(f"{path}: the last line was not finished (killed while writing it?) and is dropped: {line[:60]!r}")
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        for name in optuna.get_all_study_names(storage):
            for trial in optuna.load_study(study_name=name, storage=storage).trials:
                _check_trial(trial)
        return storage
    except Exception as error:  # whatever Optuna makes of lines that are JSON, but not a journal's
        raise UserError(
            f"{path}: no journal of trials ({type(error).__name__}: {error}); restore it from a copy, or name another "
            "--out to begin anew"
        ) from error


def _check_trial(trial: FrozenTrial) -> None:
    """Look at everything that a search reads of a trial."""
    if not isinstance(trial.value, float | int | None) or not isinstance(trial.params, dict):
        raise TypeError(f"trial {trial.number} has the score {trial.value!r} and the parameters {trial.params!r}")
    _ = trial.duration


def _check_data(searches: Searches) -> None:
    """Stop before the first trial where some run would be refused at its start."""
    for (data, model), search in searches.items():
        search.check_scored()
        check_run(f"{data}/{model}", *search.first_configs())


def _searched(study: Study) -> list[str]:
    return [data for data, entry in study.data.items() if entry.tuned_on is None]


def _done(searches: Searches) -> int:
    return sum(len(search.done()) for search in searches.values())


def _before(study: Study, name: str, trials: int, path: Path) -> Tuned:
    """What tuned.json holds already."""
    if not path.exists():
        return Tuned(study=name, trials=trials, best={})
    before, now = load_tuned(path), {(data, model) for data in _searched(study) for model in study.trained(data)}
    others = [f"{data}/{model}" for data, best in before.best.items() for model in best if (data, model) not in now]
    if others and (before.study, before.trials) != (name, trials):
        raise UserError(
            f"{path} also holds settings of {', '.join(others)}, found for '{before.study}' with {before.trials} "
            f"trials each; this is '{name}' with {trials}. Budgets are equal: give the same --trials, tune all models "
            "together, or name another --out"
        )
    return before


def _tuned(study: Study, name: str, trials: int, searches: Searches, before: Tuned) -> Tuned:
    best = {d: {m: searches[d, m].best_assignments(trials) for m in study.trained(d)} for d in _searched(study)}
    listed = {d: {m: searches[d, m].listed(trials) for m in study.trained(d)} for d in _searched(study)}
    return Tuned(study=name, trials=trials, best=merge(before.best, best), searches=merge(before.searches, listed))
