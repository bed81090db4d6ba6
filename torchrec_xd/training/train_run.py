"""Training a run: from a config to a run folder with checkpoints and final metrics."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Saved, Scores
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.agreement import FoundKind, agreed, read_kinds, refuse_shared_files, save_kinds
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.data.stamps import DataStamps, data_changes, read_stamps, save_stamps
from torchrec_xd.distributed.memory import peak_memory
from torchrec_xd.distributed.optimizers import Optimizers
from torchrec_xd.distributed.process_group import Processes, process_group
from torchrec_xd.distributed.sharding import table_bytes
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.findings import training_findings
from torchrec_xd.log import RunLog
from torchrec_xd.planner import RankMeasured, RunPlan
from torchrec_xd.prepare.encoders import copy_encoders
from torchrec_xd.run_folder import NEW_VOCABULARIES, RunFolder
from torchrec_xd.run_lock import LOCK, run_lock
from torchrec_xd.schema import Split
from torchrec_xd.training.building import build, plan_sharding, shard_by, source_config, source_run
from torchrec_xd.training.checks import check_data, refuse_long_outages
from torchrec_xd.training.compilation import not_compiled, refuse_missing_compiler
from torchrec_xd.training.inference import checkpoints_of, choose_checkpoint
from torchrec_xd.training.origins import Origin, check_continuation, load_source_weights, origin_of
from torchrec_xd.training.split_evaluation import SplitEvaluation, has_rows
from torchrec_xd.training.trackers import refuse_unusable
from torchrec_xd.training.tracking import Trackers
from torchrec_xd.training.trainer import Summary, Training, fit
from torchrec_xd.training.vocabularies import begin_rows, keep_vocabularies, with_vocabularies

OURS = (LOCK, NEW_VOCABULARIES)
"""What the folder of a run that has not begun may hold."""


def train(
    config: RunConfig,
    directory: str | Path,
    *,
    resume: bool = False,
    restartable: bool = False,
    accept_changed_data: bool = False,
    continue_from: str | Path | None = None,
) -> dict[str, Any]:
    """Train, validate after every epoch, evaluate at the end; returns the content of metrics.json.

    Args:
        config: the run's.
        directory: the run folder, new or empty unless the run is resumed. Afterwards it holds config.yaml, plan.json,
            log.txt, metrics.jsonl, tensorboard/, checkpoints/ and metrics.json (of the best checkpoint where the run
            validated, else of the last).
        resume: go on from the last checkpoint.
        restartable: resume where the folder holds a begun run, return the metrics of a finished one, else begin: for
            launchers that may start a job any number of times.
        accept_changed_data: resume although the files are not those that the run began with: at the same share of the
            epoch.
        continue_from: run folder whose model this run goes on with, in place of the config's `continue_from`.

    Raises:
        UserError: the folder holds another run or is in use, config and data do not fit together, the data have
            changed since the run began, or the run to continue from has another model; nothing is written.
    """
    folder = RunFolder(Path(directory))
    _refuse_both(resume, continue_from, folder)
    resume = resume or (restartable and folder.exists())
    config = _continuing(config, folder, resume, continue_from)
    _check_folder(config, folder, resume)
    with process_group(config.trainer) as processes, _only_job(folder, processes):
        resume = processes.any(resume)  # a node may see late what another one wrote into a shared folder
        if restartable and (done := processes.on_main(lambda: _finished(config, folder))):
            return done
        _check_locations(config, processes)
        config = with_vocabularies(config, folder, processes, begun=resume)
        schema = config.schema_in_use
        refuse_missing_compiler(config.trainer.compile, config.trainer.compile_cache, processes.device)
        loader = _training_loader(config, processes)
        valid = SplitEvaluation(config, "valid", processes) if has_rows(schema, "valid") else None
        final = SplitEvaluation(config, config.evaluate_on, processes)
        loaders = [loader, *(evaluation.loader for evaluation in (valid, final) if evaluation)]
        before = [folder, *(RunFolder(path) for path in (config.init_from, config.continue_from) if path)]
        id_kinds = agreed(
            [
                *(kind for run in before for kind in read_kinds(run.id_kinds)),
                *(kind for each in loaders for kind in each.id_kinds.values()),
            ]
        )
        valid_loader: dict[Split, Loader] = {} if valid is None else {"valid": valid.loader}
        splits: dict[Split, Loader] = {config.evaluate_on: final.loader, "train": loader, **valid_loader}
        stamps: DataStamps = {split: each.stamps() for split, each in splits.items()}
        changed = _changed_data(folder, stamps, accept_changed_data) if resume else ""
        doubts = check_data(config, splits)
        built = build(config, source_run(config, folder))
        checkpoints = checkpoints_of(config, folder, processes)
        begins = not (resume and processes.any(checkpoints.last() is not None))
        origin = origin_of(config, built, folder, processes) if begins else None
        parameters = built.parameter_counts()
        plan = plan_sharding(built, config, processes)
        processes.on_main(lambda: _begin_folder(config, plan, folder, stamps, id_kinds.values()))
        with RunLog(folder.path, processes.rank) as log, Trackers(config, folder, log) as trackers:
            model, optimizers = shard_by(plan, built, config, processes)
            saved = checkpoints.resume(model, optimizers, log.say) if resume else None
            first = saved.step if saved else _begin(config, origin, model, optimizers, folder, processes, log)
            start = _loader_state(saved, loader, config, log) if saved else LoaderState(0, 0)
            log.truncate_after(first, validated=saved is None or saved.validated)
            trackers.start(lambda: checkpoints.certain)
            log.say(f"{directory}: {config.model.name} on {', '.join(schema.domains)}, {loader.rows:,} rows an epoch")
            training = Training(model, optimizers, config.trainer, processes)
            _tell(log, training, changed, doubts)
            summary = fit(
                training,
                loader,
                log,
                checkpoints,
                lambda: None if valid is None else valid.monitored(model, config),
                start=start,
                step=first,
                scores=saved.scores if saved else Scores(),
                validated=saved is None or saved.validated,
            )
            doubts += _doubts(loader, processes, doubts, log)
            ranks = processes.all_gather_object(_measured(model, optimizers, summary, processes))
            chosen = choose_checkpoint(checkpoints, "best", log.say)
            if chosen != checkpoints.last():
                checkpoints.load(model, chosen, checked=True)
            content: dict[str, Any] = {
                **final.report(model),
                "split": config.evaluate_on,
                "checkpoint": chosen.name,
                "warnings": doubts,
                "train": {
                    "steps": summary.steps,
                    "rows": summary.rows,
                    "rows_per_second": summary.rows_per_second,
                    "parameters": parameters,
                    "ranks": [rank.model_dump() for rank in ranks],
                },
            }
            processes.on_main(lambda: write_json(folder.metrics, content))
    return content


def _begin(
    config: RunConfig,
    origin: Origin | None,
    model: nn.Module,
    optimizers: Optimizers,
    folder: RunFolder,
    processes: Processes,
    log: RunLog,
) -> int:
    """Load what a run that begins takes from others; returns the steps that its model has been trained for."""
    if origin is not None:
        step = origin.load(model, optimizers, folder, log)
        begin_rows(config, folder, model, optimizers)
        return step
    begin_rows(config, folder, model, optimizers)
    if config.init_from is not None:
        load_source_weights(config, config.init_from, model, folder, processes, log)
    return 0


def _tell(log: RunLog, training: Training, changed: str, doubts: Sequence[str]) -> None:
    """Say how the run begins (a collective)."""
    since = changed and f"the data have changed since the run began:\n{changed}"
    eager = not_compiled(training.settings.compile, training.processes)
    for line in filter(None, [since, training.how, eager, *(f"warning: {doubt}" for doubt in doubts)]):
        log.say(line)


def _doubts(loader: Loader, processes: Processes, told: Sequence[str], log: RunLog) -> list[str]:
    """Say what of the labels that were read makes a run worth little, and was not told before (a collective)."""
    parts = processes.all_gather_object(loader.label_counts())
    counts = {task: (sum(part[task][0] for part in parts), sum(part[task][1] for part in parts)) for task in parts[0]}
    told_of = {line.split(":")[0] for line in told}
    new = [line for line in training_findings(counts) if line.split(":")[0] not in told_of]
    for line in new:
        log.say(f"warning: {line}")
    return new


def _measured(model: nn.Module, optimizers: Optimizers, summary: Summary, processes: Processes) -> RankMeasured:
    return RankMeasured(
        table_bytes=table_bytes(model, optimizers),
        peak_memory_bytes=peak_memory(processes.device),
        step_ms=None if summary.step_seconds is None else 1000 * summary.step_seconds,
    )


def _training_loader(config: RunConfig, processes: Processes) -> Loader:
    """The training rows of this rank.

    A rank without rows would have no gradient to give, and sharded collections take no batch of 0 rows: refused.
    """
    share = ShardSpec(processes.rank, processes.size, config.seed)
    loader = Loader(config.schema_in_use, config.loader, "train", share)
    if config.trainer.weighted is not False:
        loader.even_out_weights()
    if loader.steps and not loader.smallest_batch:
        raise UserError(
            f"the train split has {loader.rows} rows, too few for {processes.size} processes and {loader.steps} steps "
            "an epoch: some batch would be empty; use fewer processes or a larger loader.batch_size"
        )
    return loader


def _refuse_both(resume: bool, continue_from: str | Path | None, folder: RunFolder) -> None:
    if resume and continue_from is not None:
        raise UserError(
            f"--resume goes on with the run in {folder.path}, --continue-from begins another one with the model of "
            f"{continue_from}; leave one of them out"
        )


def _continuing(config: RunConfig, folder: RunFolder, resume: bool, given: str | Path | None) -> RunConfig:
    """The config with the run that it goes on from: as given, else as the folder began with."""
    if given is None and resume and config.continue_from is None and folder.exists():
        given = load_run(folder.path).continue_from
    return config if given is None else config.model_copy(update={"continue_from": Path(given)})


def _check_locations(config: RunConfig, processes: Processes) -> None:
    refuse_long_outages(config, processes.size)
    refuse_shared_files(config.schema_in_use, config.loader.patience)


def _check_folder(config: RunConfig, folder: RunFolder, resume: bool) -> None:
    refuse_unusable(config.trackers)
    if resume and not folder.exists():
        raise UserError(f"--resume: {folder.path} holds no run; leave --resume out to begin one")
    if resume:
        _check_config(config, folder)
        return
    if folder.path.exists() and any(path.name not in OURS for path in folder.path.iterdir()):
        raise UserError(f"--run-dir {folder.path} is not empty; name another folder, or go on with --resume")
    check_continuation(config)


def changes_since_begun(config: RunConfig, folder: RunFolder) -> str:
    """What differs from the config that a run began with, but for what may change on resume: as `changes_from`.

    `init_from` is left out, as one folder may be spelled in several ways; more `trainer.epochs` are a change.
    """
    begun = load_run(folder.path)
    rows = {f.table_name: f.rows for f in begun.data_schema.features if f.vocabulary and f.rows}
    own = config.data_schema.with_vocabularies(folder.vocabularies, rows) if rows else config.data_schema
    may_change = {name: getattr(config, name) for name in ("sharding", "init_from", "trackers")}
    free = {name: getattr(config.trainer, name) for name in ("timeout_s", "compile_cache")}
    may_change["trainer"] = begun.trainer.model_copy(update=free)
    may_change["loader"] = begun.loader.model_copy(update={"retry_s": config.loader.retry_s})
    return config.model_copy(update={"data_schema": own}).changes_from(begun.model_copy(update=may_change))


def _check_config(config: RunConfig, folder: RunFolder) -> None:
    """Whether a run that has begun can go on with this config."""
    begun = load_run(folder.path)
    if config.trainer.epochs < begun.trainer.epochs:
        raise UserError(
            f"--resume: trainer.epochs is {config.trainer.epochs}, and {folder.path} began with "
            f"{begun.trainer.epochs}: it may grow only"
        )
    as_long = config.trainer.model_copy(update={"epochs": begun.trainer.epochs})
    if changes := changes_since_begun(config.model_copy(update={"trainer": as_long}), folder):
        raise UserError(
            f"--resume: the config is not the one that {folder.path} began with ({changes}). Only `sharding`, "
            "`trackers`, `trainer.timeout_s`, `trainer.compile_cache` and `loader.retry_s` may change, and "
            f"`trainer.epochs` may grow; resume with {folder.config}"
        )
    same_path = begun.init_from == config.init_from
    if not same_path and source_run(config) != source_run(begun, folder):
        raise UserError(
            f"--resume: init_from is {config.init_from}, another run than {begun.init_from}, from which {folder.path} "
            f"began; resume with {folder.config}"
        )


def _changed_data(folder: RunFolder, stamps: DataStamps, accepted: bool) -> str:
    """What has changed in the files since the run began, where that is accepted."""
    changed = data_changes(read_stamps(folder.data), stamps)
    if changed and not accepted:
        raise UserError(
            f"--resume: the data are not those that {folder.path} began with:\n{changed}\n"
            "put them back, begin another run, or go on with --accept-changed-data"
        )
    return changed


@contextmanager
def _only_job(folder: RunFolder, processes: Processes) -> Iterator[None]:
    """No other job writes into the folder meanwhile (a collective).

    Raises:
        UserError: on all ranks: one does.
    """
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(run_lock(folder.path)))
        if processes.is_main_process:  # of a run that is refused, or was interrupted, while it began
            held.callback(shutil.rmtree, folder.new_vocabularies, ignore_errors=True)
        yield


def _finished(config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """The content of metrics.json; empty where the run has not finished, or is to be given more epochs."""
    finished = folder.finished() and load_run(folder.path).trainer.epochs == config.trainer.epochs
    return folder.read_metrics() if finished else {}


def _loader_state(saved: Saved, loader: Loader, config: RunConfig, log: RunLog) -> LoaderState:
    """Where reading goes on: where epochs have another number of steps now, at the same share of the epoch."""
    steps = saved.epoch_steps or -(-loader.rows // (saved.world_size * config.loader.batch_size))
    if steps == loader.steps:
        return saved.position
    log.say(
        f"the checkpoint was written where an epoch had {steps} steps ({saved.world_size} processes), it now has "
        f"{loader.steps}: training goes on at the same share of the epoch; some of its rows may be read twice, and "
        "others not"
    )
    return LoaderState(saved.position.epoch, saved.position.step * loader.steps // steps)


def _begin_folder(
    config: RunConfig, plan: RunPlan, folder: RunFolder, stamps: DataStamps, id_kinds: Iterable[FoundKind]
) -> None:
    """Write down what the run is made of."""
    if folder.exists() and load_run(folder.path).trainer.epochs < config.trainer.epochs:
        folder.metrics.unlink(missing_ok=True)  # the run is not finished any more
    source = source_config(config, folder)
    if source is not None:
        write_text(folder.source, source.dump())
    keep_vocabularies(folder)
    copy_encoders(config.schema_in_use.root, folder.encoders, config.loader.patience)
    save_stamps(folder.data, stamps)
    save_kinds(folder.id_kinds, id_kinds)
    plan.plan.save(folder.plan)
    write_text(folder.config, config.dump())  # last: it makes the folder a run
