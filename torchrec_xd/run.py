"""A run: from a config to its parts, and from its parts to a folder that says what came out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from torchrec_xd.batch import Position
from torchrec_xd.checkpoint import Checkpoints, Saved, transfer
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.predictions import PredictionWriter
from torchrec_xd.data.shards import Share
from torchrec_xd.log import RunLog
from torchrec_xd.metrics import Evaluation, Report
from torchrec_xd.models import MODELS
from torchrec_xd.models.exit import ExitSettings
from torchrec_xd.models.task import TrainTask, task_rows
from torchrec_xd.planner import METRICS_FILE, PLAN_FILE, RankMeasured, RunPlan, plan_run, this_machine
from torchrec_xd.report import TransferTally, save_report
from torchrec_xd.schema import Schema, Split
from torchrec_xd.settings import UserError
from torchrec_xd.sharding import Optimizers, fuse_optimizers, shard, sharders, table_bytes
from torchrec_xd.trainer import Summary, Training, evaluate, fit, predict
from torchrec_xd.world import World, peak_memory, process_group

logger = logging.getLogger(__name__)
Choice = Literal["best", "last"]


def train(config: RunConfig, directory: Path, *, resume: bool = False, restartable: bool = False) -> dict[str, Any]:
    """Train, validate after every epoch, evaluate at the end; returns what metrics.json says.

    With `resume` a begun run goes on from its last checkpoint; with `restartable` one does if the folder holds one, and
    a finished one is left as it is: what a launcher may start any number of times.

    The folder then holds config.yaml, plan.json, log.txt, metrics.jsonl, tensorboard/, checkpoints/ and metrics.json
    (of the best checkpoint where the run validated, else of the last).

    Raises:
        UserError: the folder holds another run, or anything in config or data is not as it must be; nothing is written.
    """
    resume = resume or (restartable and (directory / "config.yaml").is_file())
    _check_folder(config, directory, resume)
    schema = config.schema_in_use
    with process_group() as world:
        resume = world.any(resume)  # a node may see late what another wrote into a shared folder
        if restartable and (done := world.from_first(_finished(directory) if world.first else None)):
            return done
        share = Share(world.rank, world.size, config.seed)
        loader = Loader(schema, config.loader, "train", share)
        _refuse_empty_batches(loader, world)
        valid = _Measured(config, "valid", world) if _has(schema, "valid") else None
        final = _Measured(config, config.evaluate_on, world)
        task = build(config)
        parameters = task.parameter_counts()
        plan = planned(task, config, world)
        _begin_folder(config, plan, directory, world)
        with RunLog(directory, world.rank) as log, threads(config):
            model, optimizers = shard(task, plan.placement, config.optimizer, world, config.sharding.communication)
            if config.init_from is not None:
                _begin_from(config, config.init_from, model, directory, world)
            checkpoints = Checkpoints(directory / "checkpoints", config.checkpoint, world, schema.fingerprint())
            saved = checkpoints.resume(model, optimizers, log.say) if resume else None
            start = _position(saved, loader, config, log) if saved else Position(0, 0)
            log.truncate_after(saved.step if saved else 0)
            log.say(f"{directory}: {config.model.name} on {', '.join(schema.domains)}, {loader.rows:,} rows an epoch")
            training = Training(model, optimizers, config.trainer, world)
            summary = fit(training, loader, log, checkpoints, lambda: _score(valid, model, config), start=start)
            ranks = world.gather(_this_rank(model, optimizers, summary, world))
            chosen = checkpoints.best()
            assert chosen is not None
            if chosen != checkpoints.last():
                checkpoints.load(model, chosen)
            content: dict[str, Any] = {
                **final.report(model),
                "split": config.evaluate_on,
                "checkpoint": chosen.name,
                "train": {
                    "steps": summary.steps,
                    "rows": summary.rows,
                    "rows_per_second": summary.rows_per_second,
                    "parameters": parameters,
                    "ranks": [rank.model_dump() for rank in ranks],
                },
            }
            if world.first:
                _write(directory / METRICS_FILE, content)
    return content


def _this_rank(model: nn.Module, optimizers: Optimizers, summary: Summary, world: World) -> RankMeasured:
    return RankMeasured(
        table_bytes=table_bytes(model, optimizers),
        peak_memory_bytes=peak_memory(world.device),
        step_ms=None if summary.step_seconds is None else 1000 * summary.step_seconds,
    )


def evaluate_run(directory: Path, split: Split, which: Choice, page: Path | None = None) -> Report:
    """Metrics of a finished run on one of its splits, as metrics.json has them under `eval` and `slices`.

    With `page`, an HTML report is written there too; for EXIT it says what passes from the sources, by scene.
    """
    config = load_run(directory)
    with process_group() as world:
        measured = _Measured(config, split, world)
        with RunLog(None, world.rank), threads(config):
            model = load_model(config, directory, which, world)
            report = measured.report(model)
            if page is not None:
                tally = _transfers(config, model, split, world) if isinstance(config.model, ExitSettings) else None
                save_report(page, f"{directory.name}: {config.model.name} on {split}", report, tally)
            return report


def _transfers(config: RunConfig, model: nn.Module, split: Split, world: World) -> TransferTally:
    """What EXIT transfers, by scene; over all rows of the split, so in one process."""
    if world.size > 1:
        raise UserError("the report of an EXIT run is made in one process; run evaluate --report without torchrun")
    schema, settings = config.schema_in_use, config.model
    assert isinstance(settings, ExitSettings)
    scenes = {
        f.column: f.rows or 0 for f in schema.features if f.group == "scene" and f.kind == "id" and f.hash == "none"
    }
    loader = Loader(schema, config.loader, split, Share(shuffle=False), extra=tuple(scenes))
    tally = TransferTally(tuple(settings.sources), scenes)
    label = [task.name for task in schema.tasks].index(settings.target)
    for batch, said in predict(model, loader, world):
        own = task_rows(schema, batch)[settings.target]
        columns = {scene: batch.extra_BK[own, i].cpu().numpy() for i, scene in enumerate(scenes)}
        columns |= {"label": batch.label_BT[own, label].cpu().numpy(), "weight": batch.weight_B[own].cpu().numpy()}
        passed = torch.stack([said.score[source.fit] for source in settings.sources.values()], dim=1)
        alone, whole = said.score[settings.alone], said.score[settings.target]
        tally.update(passed.cpu().numpy(), alone.cpu().numpy(), whole.cpu().numpy(), columns)
    return tally


def score(directory: Path, rows: str | None, output: Path, domain: str, which: Choice, *, parts: bool = False) -> int:
    """Write a run's predictions for the rows of one domain's Parquet as Parquet; returns their number.

    The rows of its test split unless others are named.

    Columns: the schema's user column, and `prob_<task>` for each task of the domain, truncated to [0, 1]; with `parts`
    also `score_<name>`, untruncated, for each task and each further view of it. Rows in the order of the input.

    Raises:
        UserError: an unknown domain, or rows that do not fit the schema; nothing is written.
    """
    config = load_run(directory)
    schema = config.schema_in_use
    if domain not in schema.domains:
        raise UserError(f"--domain {domain}: the run's domains are: {', '.join(schema.domains)}")
    own = schema.domains[domain].test if rows is None else str(Path(rows).absolute())
    domains = {
        name: entry.model_copy(update={"test": own if name == domain else None})
        for name, entry in schema.domains.items()
    }
    tasks = [task.name for task in schema.tasks if task.domain == domain]
    views = MODELS[config.model.name].views(config.model)
    scores = [*tasks, *(view for view, task in views.items() if task in tasks)] if parts else []
    with process_group() as world:
        if world.size > 1:
            raise UserError("score runs in one process; split the input to use several")
        given = schema.model_copy(update={"domains": domains})
        loader = Loader(given, config.loader, "test", Share(shuffle=False), labels=False)
        with RunLog(None), threads(config):
            model = load_model(config, directory, which, world)
            with PredictionWriter(output, schema.user, tasks, scores) as writer:
                for batch, said in predict(model, loader, world):
                    writer.write(batch.user_B, [said.score[name] for name in (*tasks, *scores)])
    return loader.rows


class _Measured:
    """A split that is evaluated, its files already checked."""

    def __init__(self, config: RunConfig, split: Split, world: World) -> None:
        self.schema, self.world = config.schema_in_use, world
        views = MODELS[config.model.name].views(config.model)
        self.evaluation = partial(Evaluation, self.schema, config.metrics, views)
        share = Share(world.rank, world.size, config.seed, shuffle=False)
        self.loader = Loader(self.schema, config.loader, split, share, extra=self.evaluation().extra)

    def report(self, model: nn.Module) -> Report:
        return evaluate(model, self.loader, self.evaluation(), self.schema, self.world)


def _score(valid: _Measured | None, model: nn.Module, config: RunConfig) -> float | None:
    """Mean of the monitored metric over `monitor_tasks` (of the target domains, of all if none is a target)."""
    if valid is None:
        return None
    report = valid.report(model)["eval"]
    targets = valid.schema.targets() or tuple(valid.schema.domains)
    watched = config.monitor_tasks or [task.name for task in valid.schema.tasks if task.domain in targets]
    values = [report[name][config.monitor] for name in watched]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _refuse_empty_batches(loader: Loader, world: World) -> None:
    """A rank without rows would have no gradient to give, and sharded collections take no batch of 0 rows."""
    if loader.steps and not loader.smallest_batch:
        raise UserError(
            f"the train split has {loader.rows} rows, too few for {world.size} processes and {loader.steps} steps an "
            "epoch: some batch would be empty; use fewer processes or a larger loader.batch_size"
        )


def _has(schema: Schema, split: Split) -> bool:
    return any(domain.paths(split) for domain in schema.domains.values())


def _check_folder(config: RunConfig, directory: Path, resume: bool) -> None:
    exists = (directory / "config.yaml").is_file()
    if resume and not exists:
        raise UserError(f"--resume: {directory} holds no run; leave --resume out to begin one")
    if resume:
        begun = load_run(directory)
        if begun.model_copy(update={"sharding": config.sharding}).dump() != config.dump():
            raise UserError(
                f"--resume: the config is not the one that {directory} began with (only `sharding` may change); "
                f"resume with {directory}/config.yaml"
            )
    if not resume and directory.exists() and any(directory.iterdir()):
        raise UserError(f"--run-dir {directory} is not empty; name another folder, or go on with --resume")


def _finished(directory: Path) -> dict[str, Any]:
    """What metrics.json says; empty where the run has not come to its end."""
    written: dict[str, Any] = json.loads(path.read_text()) if (path := directory / METRICS_FILE).is_file() else {}
    return written


def _position(saved: Saved, loader: Loader, config: RunConfig, log: RunLog) -> Position:
    """Where reading goes on; with another number of processes at the same share of the epoch, which is cut anew."""
    steps = -(-loader.rows // (saved.world_size * config.loader.batch_size))
    if steps == loader.steps:
        return saved.position
    log.say(
        f"written by {saved.world_size} processes in steps of other rows: the epoch goes on at the same share of its "
        "steps; some of its rows may be read twice, and others not"
    )
    return Position(saved.position.epoch, round(saved.position.step * loader.steps / steps))


def _begin_folder(config: RunConfig, plan: RunPlan, directory: Path, world: World) -> None:
    if world.first:
        directory.mkdir(parents=True, exist_ok=True)
        _write_text(directory / "config.yaml", config.dump())
        plan.plan.save(directory / PLAN_FILE)
    world.barrier()


def build(config: RunConfig) -> TrainTask:
    """The run's model with first weights, its tables still on the meta device.

    Raises:
        UserError: model, schema and the run to begin with do not fit together.
    """
    torch.manual_seed(config.seed)
    model = MODELS[config.model.name]
    arguments = (config.schema_in_use, config.model, config.embeddings, config.seed)
    if config.init_from is None:
        return model.build(*arguments)
    source = load_run(config.init_from)
    assert model.transfer is not None
    while _next_slice(config, source):
        assert source.init_from is not None
        source = load_run(source.init_from)
    if source.model.name != model.transfer.source:
        raise UserError(
            f"init_from: {config.init_from} trained '{source.model.name}'; "
            f"'{config.model.name}' begins with a run of '{model.transfer.source}'"
        )
    return model.build(*arguments, (source.schema_in_use, source.model, source.embeddings))


def planned(task: TrainTask, config: RunConfig, world: World) -> RunPlan:
    """Where the run's tables will lie: planned by rank 0 for all (a collective).

    Raises:
        UserError: on all ranks: no plan fits, or the plan that the config names is not for this model and cluster.
    """
    fuse_optimizers(task, config.optimizer.tables)
    found: RunPlan | None = None
    problem = ""
    if world.first:
        cluster = this_machine("cuda" if world.device.type == "cuda" else "cpu", world.size, world.local_size)
        pooling = {f.column: float(f.length) for f in config.schema_in_use.features if f.length is not None}
        kinds = sharders(config.sharding.communication)
        try:
            found = plan_run(task, kinds, cluster, config.sharding, config.loader.batch_size, pooling)
        except UserError as error:
            problem = str(error)
    found, problem = world.from_first((found, problem))
    if found is None:
        raise UserError(problem)
    return found


def sharded(task: TrainTask, config: RunConfig, world: World) -> tuple[nn.Module, Optimizers]:
    """The model on its ranks, and what moves it (a collective).

    Raises:
        UserError: on all ranks: no plan fits, or the plan that the config names is not for this model and cluster.
    """
    plan = planned(task, config, world)
    return shard(task, plan.placement, config.optimizer, world, config.sharding.communication)


def _begin_from(config: RunConfig, source: Path, model: nn.Module, directory: Path, world: World) -> None:
    """Take over the declared weights and write down what became of all: transfer.json."""
    declared = MODELS[config.model.name].transfer
    assert declared is not None
    begun = load_run(source)
    folder = _checkpoint(begun, source, config.init_checkpoint, world)
    Checkpoints(folder.parent, begun.checkpoint, world, begun.schema_in_use.fingerprint()).check(folder)
    if _next_slice(config, begun):
        manifest = transfer(model, folder, {part: part for part in ("embeddings.", "net.", "teacher.")}, ())
    else:
        prefixes = {**declared.prefixes, **declared.further(config.schema_in_use, begun.schema_in_use)}
        manifest = transfer(model, folder, prefixes, declared.prunable)
    if world.first:
        _write(directory / "transfer.json", {"from": str(folder), **asdict(manifest)})
    logger.info("transfer: %d loaded, %d fresh, %d pruned", *(len(part) for part in asdict(manifest).values()))


def _next_slice(config: RunConfig, begun: RunConfig) -> bool:
    """Whether a run goes on with all of one of its own kind."""
    declared = MODELS[config.model.name].transfer
    return declared is not None and declared.slices and begun.model.name == config.model.name


def _checkpoint(config: RunConfig, directory: Path, which: Choice, world: World) -> Path:
    checkpoints = Checkpoints(directory / "checkpoints", config.checkpoint, world, config.schema_in_use.fingerprint())
    folder = checkpoints.best() if which == "best" else checkpoints.last()
    if folder is None:
        raise UserError(f"{directory} has no checkpoint yet; train it first")
    return folder


def load_model(config: RunConfig, directory: Path, which: Choice, world: World) -> nn.Module:
    """The model of a run, its weights from a checkpoint."""
    folder = _checkpoint(config, directory, which, world)
    model: nn.Module = sharded(build(config), config, world)[0]
    Checkpoints(folder.parent, config.checkpoint, world, config.schema_in_use.fingerprint()).load(model, folder)
    return model


@contextmanager
def threads(config: RunConfig) -> Iterator[None]:
    """As many CPU threads as the config wants, inside the block."""
    before = torch.get_num_threads()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
