"""From a run folder to its diagnostics: which apply, one pass over some batches, and the two files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torchrec_xd.atomic_write import write_json
from torchrec_xd.batch import Batch
from torchrec_xd.checkpoint import CheckpointChoice
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.diagnostics.diagnostic import Diagnostic, Part
from torchrec_xd.diagnostics.finding import Finding
from torchrec_xd.diagnostics.gradients import GradientCosines
from torchrec_xd.diagnostics.knowledge import FeatureScores, GateOpenness
from torchrec_xd.diagnostics.scores import ScoreMetrics
from torchrec_xd.diagnostics.tables import TouchedTables
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.log import RunLog
from torchrec_xd.models import find_model
from torchrec_xd.models.model import Model
from torchrec_xd.models.spec import DiagnosedRun
from torchrec_xd.reports.page import Grid, save_page
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema, Split
from torchrec_xd.training.inference import load_sharded
from torchrec_xd.training.split_evaluation import columns_of
from torchrec_xd.training.stage_scores import stage_scores
from torchrec_xd.writable import check_output_folder

NOTHING_FOUND = "None of the faults that have a name was found."


def diagnose(
    directory: str | Path,
    out: str | Path,
    split: Split = "test",
    checkpoint: CheckpointChoice = "best",
    *,
    batches: int = 50,
) -> dict[str, Any]:
    """Measure what passes between the domains of a run; returns the content of diagnostics.json (docs/diagnostics.md).

    Args:
        directory: a run folder.
        out: folder for diagnostics.json and diagnostics.html, made if missing.
        split: whose rows are read, in an order drawn by the run's seed.
        checkpoint: best or last.
        batches: how many batches of the run's batch size are read, fewer where the split ends before.

    Raises:
        UserError: no run, no checkpoint, a split without rows, several processes; nothing is written.
    """
    check_output_folder(out, "--out")
    if batches < 1:
        raise UserError(f"--batches {batches}: has to be at least 1; 50 is usual")
    run, config = RunFolder(Path(directory)), load_run(Path(directory))
    schema = config.schema_in_use
    with process_group(config.trainer) as processes, RunLog(None):
        if processes.size > 1:
            raise UserError("diagnose runs in one process; run it without torchrun")
        if not Loader(schema, config.loader, split, ShardSpec(seed=config.seed)).rows:
            raise UserError(f"the {split} split holds no rows; name another one with --split")
        model = cast(Model, load_sharded(config, run, checkpoint, processes).module)
        found, left_out = applying(model, config, split, run.path)
        integers = tuple(dict.fromkeys(column for each in found for column in each.integer_columns()))
        numbers = tuple(dict.fromkeys(feature for each in found for feature in each.number_features(split)))
        read = schema.model_copy(update={"features": (*schema.features, *numbers)})
        loader = Loader(read, config.loader, split, ShardSpec(seed=config.seed), extra=integers)
        loader.even_out_weights()
        seen = _as_trained(config)
        some = (batch.to(processes.device) for batch in islice(loader.batches(), batches))
        rows = measure(model, found, some, integers, numbers, seen)
        compared = [each for each in found if each.reads_training] if split != "train" else []
        # Those that watch the net would see the training rows too: what they measured is taken before.
        measured = {each.name: each.values() for each in found if each not in compared}
        if compared:
            training = Loader(schema, config.loader, "train", ShardSpec(seed=config.seed))
            some = (batch.to(processes.device) for batch in islice(training.batches(), batches))
            measure_training(model, compared, some)
    values = {each.name: measured[each.name] if each.name in measured else each.values() for each in found}
    named = [finding for each in found for finding in each.findings(values[each.name])]
    content = {
        "model": config.model.name,
        "split": split,
        "checkpoint": checkpoint,
        "batches": min(batches, loader.steps),
        "rows": dict(zip(schema.domains, rows, strict=True)),
        "findings": [asdict(finding) for finding in named],
        "diagnostics": {each.name: {"reading": each.reading, **values[each.name]} for each in found},
        "left_out": left_out,
    }
    _save(RunFolder(Path(out)), f"{run.path.name}: transfer in {config.model.name} on {split}", content, found)
    return content


def applying(model: Model, config: RunConfig, split: Split, folder: Path) -> tuple[list[Diagnostic], dict[str, str]]:
    """The diagnostics of a model, watching it from now on; and by name why it lacks others."""
    schema = config.schema_in_use
    here = [name for name, domain in schema.domains.items() if domain.paths(split)]
    watched = config.monitored_tasks
    known = [task.name for task in schema.tasks if task.name in watched and task.domain in here]
    found: list[Diagnostic] = [ScoreMetrics(schema, known)] if known else []
    left_out: dict[str, str] = {}
    if len(here) > 1:
        found.append(GradientCosines(dense_parameters(model), schema))
    elif len(schema.domains) > 1:
        left_out[GradientCosines.name] = f"the {split} split has rows of '{here[0]}' alone; try another --split"
    else:
        left_out[GradientCosines.name] = f"the run reads one domain, '{here[0]}'"
    found += find_model(config.model.name).diagnostics(DiagnosedRun(schema, config.model, model.net, folder))
    nets: list[tuple[nn.Module, Schema]] = [(model.net, model.embeddings.read)]
    if model.teacher is not None:
        nets.append((model.teacher.net, model.teacher.embeddings.read))
    scores = FeatureScores(nets, noise_features(schema))
    if scores.columns:
        found.append(scores)
    else:
        left_out[scores.name] = "no HFA gives scores: another model than MKT, or hfa is off"
    gates = GateOpenness(model.net, stage_scores(config, folder))
    if gates.spread:
        found.append(gates)
    else:
        left_out[gates.name] = "the model has no gated linear units; mkt_finetune and ctnet have"
    return [*found, TouchedTables(schema)], left_out


def dense_parameters(model: Model) -> dict[str, nn.Parameter]:
    """All weights but tables and the teacher's, by name."""
    tables = model.embeddings
    parts = {"embeddings.numeric": tables.numeric, "embeddings.projections": tables.projections, "net": model.net}
    return {name: weight for path, part in parts.items() for name, weight in part.named_parameters(path)}


def measure(
    model: Model,
    diagnostics: Sequence[Diagnostic],
    batches: Iterable[Batch],
    integers: Sequence[str] = (),
    numbers: Sequence[Feature] = (),
    as_trained: Callable[[Batch], Batch] = lambda batch: batch,
) -> list[int]:
    """One pass over the batches in evaluation mode; returns how many rows of each domain were in them.

    No weight moves.

    Args:
        model: whose outputs are measured.
        diagnostics: what measures them.
        batches: their extra columns are `integers`; their last dense columns, which the model does not see, `numbers`.
        integers: names of these columns.
        numbers: the features of these columns.
        as_trained: what the loss of training saw of a batch; diagnostics see the rows' own weights.
    """
    model.eval()
    offsets = []
    for batch in batches:
        given = replace(batch, dense_BN=batch.dense_BN[:, : batch.dense_BN.shape[1] - len(numbers)])
        with torch.set_grad_enabled(any(isinstance(each, GradientCosines) for each in diagnostics)):
            output = model(as_trained(given))
        for each in diagnostics:
            each.update(given, output, columns_of(batch, integers, numbers))
        offsets.append(batch.offsets)
    return [int(rows) for rows in torch.tensor(offsets).diff(dim=1).sum(0)]


def measure_training(model: Model, diagnostics: Sequence[Diagnostic], batches: Iterable[Batch]) -> None:
    """One pass over batches of the training split in evaluation mode, for what holds them against another split."""
    model.eval()
    for batch in batches:
        with torch.no_grad():
            output = model(batch, with_loss=False)
        for each in diagnostics:
            each.update_training(batch, output)


def _as_trained(config: RunConfig) -> Callable[[Batch], Batch]:
    """To a batch with the row weights that training's loss saw."""
    if config.trainer.weighted is False:
        return lambda batch: replace(batch, weight_B=torch.ones_like(batch.weight_B))
    return lambda batch: batch


def noise_features(schema: Schema) -> frozenset[str] | None:
    """Columns that the manifest of a planted world calls noise; None where it names none."""
    path = Path(schema.root) / "manifest.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    return frozenset(content.get("noise_features", ())) or None


def _save(folder: RunFolder, title: str, content: dict[str, Any], found: Iterable[Diagnostic]) -> None:
    read = ", ".join(f"{rows:,} of {domain}" for domain, rows in content["rows"].items())
    parts: list[Part] = [f"Measured on {content['batches']} batches: rows {read}."]
    named = [str(Finding(**finding)) for finding in content["findings"]]
    parts += ["# Findings", *(named or [NOTHING_FOUND])]
    for each in found:
        values = content["diagnostics"][each.name]
        parts += [f"# {each.title}", f"How to read it: {each.reading}", *each.parts(values)]
    if content["left_out"]:
        parts += ["# Left out", Grid(["diagnostic", "why"], [list(pair) for pair in content["left_out"].items()])]
    save_page(folder.diagnostics_page, title, parts)
    write_json(folder.diagnostics, content)
