"""From a run folder to its diagnostics: which apply, one pass over some batches, and the two files that say it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import plotly.graph_objects as go
import torch

from torchrec_xd.batch import Batch
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import Share
from torchrec_xd.diagnostics.gradients import GradientCosines
from torchrec_xd.diagnostics.knowledge import FeatureScores, GateOpenness, KnowledgeCosines
from torchrec_xd.diagnostics.tables import TouchedTables
from torchrec_xd.diagnostics.transfer import TransferProbabilities, scenes, true_columns, with_truth
from torchrec_xd.log import RunLog
from torchrec_xd.models.exit import ExitSettings
from torchrec_xd.models.mkt import MultiEntityModel
from torchrec_xd.models.task import Output, TrainTask
from torchrec_xd.page import Grid, save_page
from torchrec_xd.run import Choice, load_model, threads
from torchrec_xd.schema import Schema, Split
from torchrec_xd.settings import UserError
from torchrec_xd.world import process_group

DATA_FILE, PAGE_FILE = "diagnostics.json", "diagnostics.html"


class Diagnostic(Protocol):
    """One thing that is measured."""

    name: str
    """Key in diagnostics.json."""
    title: str
    reading: str
    """One sentence: how to read it."""

    def update(self, batch: Batch, output: Output) -> None:
        """Add a batch and what the model said of it."""

    def values(self) -> dict[str, Any]:
        """What was measured, as JSON."""

    def parts(self, values: dict[str, Any]) -> list[str | Grid | go.Figure]:
        """What was measured, for the page."""


def diagnose(
    directory: Path, out: Path, split: Split = "test", which: Choice = "best", *, batches: int = 50
) -> dict[str, Any]:
    """Measure what passes between the domains of a run; returns what diagnostics.json says (docs/diagnostics.md).

    Args:
        directory: a run folder.
        out: folder for diagnostics.json and diagnostics.html, made if missing.
        split: whose rows are looked at, in an order drawn by the run's seed.
        which: checkpoint.
        batches: as many of the run's batch size are looked at, fewer where the split ends before.

    Raises:
        UserError: no run, no checkpoint, a split without rows, several processes; nothing is written.
    """
    if batches < 1:
        raise UserError(f"--batches {batches}: at least one batch is looked at; 50 is usual")
    config = load_run(directory)
    schema, settings = config.schema_in_use, config.model
    with process_group() as world:
        if world.size > 1:
            raise UserError("diagnose runs in one process; run it without torchrun")
        truth = true_columns(schema, settings, split) if isinstance(settings, ExitSettings) else {}
        read = with_truth(schema, settings, truth) if isinstance(settings, ExitSettings) else schema
        loader = Loader(read, config.loader, split, Share(seed=config.seed), extra=scenes(schema))
        if not loader.rows:
            raise UserError(f"the {split} split holds no rows; name another one with --split")
        with RunLog(None), threads(config):
            task = cast(TrainTask, load_model(config, directory, which, world).module)
            found, left_out = applying(task, config, split, truth, directory)
            looked_at = (batch.to(world.device) for batch in islice(loader.batches(), batches))
            rows = measure(task, found, _as_trained(looked_at, config), len(truth))
    content = {
        "model": settings.name,
        "split": split,
        "checkpoint": which,
        "batches": min(batches, loader.steps),
        "rows": dict(zip(schema.domains, rows, strict=True)),
        "diagnostics": {each.name: {"reading": each.reading, **each.values()} for each in found},
        "left_out": left_out,
    }
    _save(out, f"{directory.name}: transfer in {settings.name} on {split}", content, found)
    return content


def applying(
    task: TrainTask, config: RunConfig, split: Split, truth: Mapping[str, str], directory: Path
) -> tuple[list[Diagnostic], dict[str, str]]:
    """The diagnostics that a model has, watching it from now on; and why it lacks the others, by name."""
    schema = config.schema_in_use
    here = [name for name, domain in schema.domains.items() if domain.paths(split)]
    found: list[Diagnostic] = []
    left_out: dict[str, str] = {}
    if len(here) > 1:
        found.append(GradientCosines(task, schema))
    elif len(schema.domains) > 1:
        left_out[GradientCosines.name] = f"the {split} split has rows of '{here[0]}' alone; try another --split"
    else:
        left_out[GradientCosines.name] = f"the run reads one domain, '{here[0]}'"
    if isinstance(task.net, MultiEntityModel):
        found.append(KnowledgeCosines(task.net, logged_cosines(directory, schema)))
    else:
        left_out[KnowledgeCosines.name] = "the model holds no common and independent knowledge apart; mkt_pretrain does"
    scores = FeatureScores(task, noise_features(schema))
    if scores.columns:
        found.append(scores)
    else:
        left_out[scores.name] = "no HFA gives scores: another model than MKT, or hfa is off"
    gates = GateOpenness(task)
    if gates.spread:
        found.append(gates)
    else:
        left_out[gates.name] = "the model has no gated linear units; mkt_finetune and ctnet have"
    if isinstance(config.model, ExitSettings):
        found.append(TransferProbabilities(schema, config.model, truth))
    else:
        left_out[TransferProbabilities.name] = "the model gives no transfer probability; exit does"
    return [*found, TouchedTables(schema)], left_out


def measure(
    task: TrainTask, diagnostics: Iterable[Diagnostic], batches: Iterable[Batch], num_truths: int = 0
) -> list[int]:
    """One pass over the batches in evaluation mode; returns how many rows of each domain were in them.

    The last `num_truths` dense columns of a batch are for diagnostics, and kept from the model. No weight moves.
    """
    diagnostics = list(diagnostics)
    task.eval()
    offsets = []
    for batch in batches:
        given = replace(batch, dense_BN=batch.dense_BN[:, : batch.dense_BN.shape[1] - num_truths])
        with torch.set_grad_enabled(any(isinstance(each, GradientCosines) for each in diagnostics)):
            output = task(given)[1]
        for each in diagnostics:
            each.update(batch, output)
        offsets.append(batch.offsets)
    return [int(rows) for rows in torch.tensor(offsets).diff(dim=1).sum(0)]


def _as_trained(batches: Iterable[Batch], config: RunConfig) -> Iterable[Batch]:
    """Batches with the row weights that training's loss saw."""
    for batch in batches:
        yield batch if config.trainer.weighted else replace(batch, weight_B=torch.ones_like(batch.weight_B))


def logged_cosines(directory: Path, schema: Schema) -> dict[str, list[dict[str, float]]]:
    """Domain to `step` and `cosine` of MKT's stage 1, as metrics.jsonl has them: means over its rows of a batch."""
    path = directory / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {
        domain: [{"step": line["step"], "cosine": line[key]} for line in lines if (key := f"cosine/{domain}") in line]
        for domain in schema.domains
    }


def noise_features(schema: Schema) -> frozenset[str] | None:
    """Columns that the manifest of a planted world calls noise; None where it names none."""
    path = Path(schema.root) / "manifest.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    return frozenset(content.get("noise_features", ())) or None


def _save(folder: Path, title: str, content: dict[str, Any], found: Iterable[Diagnostic]) -> None:
    looked_at = ", ".join(f"{rows:,} of {domain}" for domain, rows in content["rows"].items())
    parts: list[str | Grid | go.Figure] = [f"Measured on {content['batches']} batches: rows {looked_at}."]
    for each in found:
        values = content["diagnostics"][each.name]
        parts += [f"# {each.title}", f"How to read it: {each.reading}", *each.parts(values)]
    if content["left_out"]:
        parts += ["# Left out", Grid(["diagnostic", "why"], [list(pair) for pair in content["left_out"].items()])]
    folder.mkdir(parents=True, exist_ok=True)
    save_page(folder / PAGE_FILE, title, parts)
    partial = folder / f"{DATA_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / DATA_FILE)
