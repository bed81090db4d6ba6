"""What can be said of the data before the first step: what would train to nothing is refused, doubts are told.

All of it comes from the statistics of local files; of others nothing is known before they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import get_args

import numpy as np

from torchrec_xd.config import RunConfig
from torchrec_xd.data.filesystems import join
from torchrec_xd.data.limits import Range
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.locations import on_store
from torchrec_xd.data.normalisation import normalised
from torchrec_xd.errors import UserError
from torchrec_xd.feature import Feature
from torchrec_xd.schema import Schema, Split

LARGE, HOPELESS = 100.0, 100_000.0
"""A dense number beyond LARGE, as models read it, is told; a feature all of whose numbers lie beyond HOPELESS is
refused. Measured (docs/data_format.md): noise of scale 1 next to what can be learnt leaves an AUC of .71, of scale 100
.65, 1,000 .53, 100,000 .50. An outlier alone ends no training, and statistics cannot tell it from a scale."""
FEW_STEPS = 50
"""Fewer steps than that barely move a net. Measured on a planted world: MKT's second stage reached an AUC of .733 with
30 steps, and .744 with four times as many from the same rows."""
CLIENT_S = 100
"""Seconds that a store's own client takes for one try, at most: PyArrow's of S3, where nothing comes."""
WEIGHTS = 10_000.0
"""Largest weight over smallest from which on a few rows decide everything."""


def refuse_long_outages(config: RunConfig, ranks: int) -> None:
    """Refuse to ask a store for longer than the processes of a run wait for each other.

    Args:
        config: of the run.
        ranks: its processes; one alone waits for nobody.

    Raises:
        UserError: rows or encoders lie in a store, and an outage would end the run as if a process hung.
    """
    schema, needed = config.schema_in_use, config.loader.retry_s + CLIENT_S
    if ranks == 1 or config.trainer.timeout_s >= needed:
        return
    rows = (path for domain in schema.domains.values() for split in get_args(Split) for path in domain.paths(split))
    for location in (".", *rows):  # next to the root may be encoders
        if on_store(location, schema.root):
            raise UserError(
                f"{join(schema.root, location)} is in a store, which is asked for {config.loader.retry_s:g} s "
                f"(loader.retry_s), and its client takes up to {CLIENT_S} s more; the other {ranks - 1} processes wait "
                f"only {config.trainer.timeout_s} s (trainer.timeout_s): raise it to {math.ceil(needed)}, or lower "
                "loader.retry_s"
            )


def check_data(config: RunConfig, loaders: Mapping[Split, Loader]) -> list[str]:
    """Doubts about the rows of a run, a line each.

    Raises:
        UserError: no task has training labels of both classes, a dense feature is of a scale that ends training, or
            `trainer.patience` waits for a score without rows.
    """
    schema = config.schema_in_use
    train = {name: ranges for name, _, ranges in loaders["train"].domains()}
    one_class = {task.name: ranges for task in schema.tasks if (ranges := _one_class(train[task.domain], task.label))}
    if len(one_class) == len(schema.tasks):
        which = ", ".join(f"{name}: {kind}" for name, kind in one_class.items())
        raise UserError(f"all training labels of every task are of one class ({which}): there is nothing to learn")
    found = [
        f"task {name}: all training rows are {kind}: there is nothing to tell apart" for name, kind in one_class.items()
    ]
    found += _of_steps(config, loaders["train"])
    found += _of_features(schema, train)
    found += _of_weights(config, train)
    if "valid" in loaders:
        found += _of_monitored(config, loaders["valid"])
    for split, loader in loaders.items():
        if split != "train":
            found += _of_held_out(schema, split, loader)
    return found + list(_of_slices(config, loaders[config.evaluate_on]))


def _of_steps(config: RunConfig, loader: Loader) -> Iterator[str]:
    steps = config.trainer.epochs * loader.steps
    if steps < FEW_STEPS:
        yield (
            f"training takes {steps} steps in all ({config.trainer.epochs} x {loader.steps}), too few for most nets: "
            f"lower loader.batch_size ({config.loader.batch_size}) or raise trainer.epochs"
        )


def _one_class(ranges: Mapping[str, Range], label: str) -> str:
    """What all labels are; empty where there are both, or it is not known."""
    known = ranges.get(label)
    if known is None or known.low != known.high or known.low not in (0, 1):
        return ""
    return "positive" if known.low else "negative"


# ---- features --------------------------------------------------------------------------------------------------------


def _of_features(schema: Schema, train: Mapping[str, Mapping[str, Range]]) -> Iterator[str]:
    for feature in schema.features:
        known = [train[domain].get(feature.column) for domain in schema.domains if _has(schema, domain, feature)]
        ranges = [each for each in known if each is not None]
        if feature.kind not in ("id", "dense") or not ranges or len(ranges) < len(known):
            continue
        whole = ranges[0]
        for each in ranges[1:]:
            whole |= each
        if whole.low is None or whole.high is None:
            yield f"feature '{feature.column}' is null in all {whole.values:,} training rows: it teaches nothing"
        elif feature.kind == "dense":
            yield from _of_dense(feature, whole, whole.low + 0.0, whole.high + 0.0)  # writers say -0 for 0


def _has(schema: Schema, domain: str, feature: Feature) -> bool:
    return feature in schema.features_of(domain)


def _of_dense(feature: Feature, whole: Range, low: float, high: float) -> Iterator[str]:
    if low == high and not whole.nulls:
        yield f"dense feature '{feature.column}' is {low:g} in all training rows: it teaches nothing"
        return
    read = normalised(np.array([low, high]), feature)
    largest, smallest = float(np.abs(read).max()), float(np.abs(read).min()) if read[0] * read[1] > 0 else 0.0
    if largest <= LARGE:
        return
    scaled = ", as its settings in the schema leave it" if _settings(feature) else ""
    said = (
        f"dense feature '{feature.column}' reaches {largest:.4g}{scaled}, and models need numbers near 1; give it "
        f"{_remedy(low, high)} in the schema (guessed from its range, {low:.10g} to {high:.10g}; better: from all "
        "training rows), or make it an id in buckets"
    )
    if smallest > HOPELESS:
        raise UserError(f"{said}. Where all numbers lie beyond {HOPELESS:,.0f}, nothing is learnt")
    yield said


def _settings(feature: Feature) -> bool:
    return feature.log1p or any(each is not None for each in (feature.mean, feature.std, feature.clip))


def _remedy(low: float, high: float) -> str:
    """Settings that bring a range to [-2, 2]: of the logarithm where it begins near 0 and spans orders of magnitude."""
    log = low >= 0 and high > 1000 * max(low, 1.0)
    if log:
        low, high = math.log1p(low), math.log1p(high)
    std = (high - low) / 4 or 1.0
    digits = 1 - math.floor(math.log10(std))
    return f"{'log1p: true, ' if log else ''}mean: {round((low + high) / 2, digits):.15g}, std: {float(f'{std:.2g}'):g}"


# ---- weights, held-out rows, slices ----------------------------------------------------------------------------------


def _of_weights(config: RunConfig, train: Mapping[str, Mapping[str, Range]]) -> Iterator[str]:
    weight = config.schema_in_use.weight
    if weight is None:
        return
    known = [ranges[weight] for ranges in train.values() if weight in ranges]
    lows, highs = [each.low for each in known if each.low], [each.high for each in known if each.high]
    if lows and highs and max(highs) > WEIGHTS * min(lows):
        yield (
            f"row weights ('{weight}') lie between {min(lows):g} and {max(highs):g}: a few rows decide the metrics "
            "(and the loss, unless trainer.weighted is false); bound them when the files are written"
        )
    targets = [ranges for name, ranges in train.items() if name in config.schema_in_use.targets()]
    read = [ranges.get(weight) for ranges in targets or train.values()]
    if config.trainer.weighted is False and any(each is None or each.low != each.high for each in read):
        yield (
            f"trainer.weighted is false, and row weights ('{weight}') differ: every row counts once in the loss, so "
            "scores are those of the sampled rows; calibration, log loss and NE, which honour the weights, will be off "
            "by the sampling rate. Leave trainer.weighted out"
        )


def _of_monitored(config: RunConfig, valid: Loader) -> Iterator[str]:
    """Whether validation has rows of the tasks by which the best checkpoint is known."""
    tasks = ", ".join(config.monitored_tasks)
    domains = {name.partition("@")[2] for name in config.monitored_tasks}
    if any(rows for name, rows, _ in valid.domains() if name in domains):
        return
    if config.trainer.patience:
        raise UserError(
            "trainer.patience waits for a better score on the valid split, which holds no rows of the monitored "
            f"tasks, {tasks}: name files with such rows, or leave trainer.patience out and choose trainer.epochs"
        )
    if valid.rows:
        yield (
            f"the valid split holds no rows of the monitored tasks, {tasks}: no checkpoint is the best one, the last "
            "one is measured; name files with such rows, or set monitor_tasks"
        )


def _of_held_out(schema: Schema, split: Split, loader: Loader) -> Iterator[str]:
    if not loader.rows:
        rest = "no checkpoint is the best one, the last one is measured" if split == "valid" else "nothing is measured"
        yield f"the {split} split holds no rows: {rest}"
        return
    for domain, rows, ranges in loader.domains():
        if not rows and schema.domains[domain].paths(split):
            yield f"the {split} split of domain '{domain}' holds no rows"
        for task in schema.tasks:
            if rows and task.domain == domain and (kind := _one_class(ranges, task.label)):
                yield f"task {task.name}: all rows of the {split} split are {kind}: AUC cannot be measured"


def _of_slices(config: RunConfig, loader: Loader) -> Iterator[str]:
    """Groups none of whose values any row can have."""
    every = [ranges for _, rows, ranges in loader.domains() if rows]
    for column, groups in config.metrics.slices.items():
        known = [ranges[column] for ranges in every if column in ranges]
        lows, highs = (
            [each.low for each in known if each.low is not None],
            [e.high for e in known if e.high is not None],
        )
        if not lows or any(column not in ranges for ranges in every):
            continue
        for name, members in (groups or {}).items():
            low, high = min(lows), max(highs)
            if not any(low <= value <= high or value < 0 for value in members):
                yield (
                    f"metrics.slices.{column}.{name}: no row has one of its values, {members}: the rows' lie between "
                    f"{low:g} and {high:g}"
                )
