"""A method, its ablations and its opponents over several seeds, on real data.

    python -m tools.seeds mkt --seeds 3 --out runs/seeds
    python -m tools.seeds exit --seeds 3 --out runs/exit-seeds

Every run that is there already is reused; what a stop interrupted goes on. Writes `results.json` and `results.md`:
mean and standard deviation over seeds, and per seed the paired bootstrap over users of differences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import typer

from tools.quickstart import EXIT, MKT, SINGLE
from tools.references import boosted_scores, coupons
from tools.tour import Model, Row, Tour, screen
from torchrec_xd.config import load_config
from torchrec_xd.statistics import Comparison, Metric, mean_spread, paired_bootstrap

METRICS = ("auc", "gauc", "logloss", "calibration")
BOOSTING = "boosting_coupons"


@dataclass(frozen=True)
class Study:
    """A tour with more models, and the comparisons that it is for."""

    tour: Tour
    model: str
    """Label of the model that is compared."""
    against: tuple[str, ...]
    """Labels of others."""
    compared: tuple[Metric, ...] = ("auc",)
    """Metrics that are compared."""
    scores: Callable[[Path, int], dict[str, Any]] = lambda data, seed: {}
    """Of data and seed: test scores of models that are no runs, by label."""


def _boosting(data: Path, seed: int) -> dict[str, Any]:
    fitted = pa.concat_tables([coupons(data, split) for split in ("train", "valid")])
    return {BOOSTING: boosted_scores(fitted, coupons(data, "test"), seed)[BOOSTING]}


FINETUNE, EXIT_CONFIG = "configs/mkt_cj_finetune.yaml", "configs/exit_cj.yaml"
WEIGHTED = ("trainer.weighted=true",)
"""The loss honours row weights, as the metrics do."""
STUDIES = {
    "mkt": Study(
        replace(
            MKT,
            models=(
                SINGLE,
                Model("MKT w/o TEM (stage 1)", "pretrain", "configs/mkt_cj_pretrain.yaml"),
                Model("MKT", "finetune", FINETUNE, "pretrain"),
                Model("stage 1 w/o HFA", "pretrain_wo_hfa", "configs/mkt_cj_pretrain_wo_hfa.yaml"),
                Model("MKT w/o HFA", "finetune_wo_hfa", FINETUNE, "pretrain_wo_hfa"),
                Model("stage 1 w/o PDL", "pretrain_wo_pdl", "configs/mkt_cj_pretrain_wo_pdl.yaml"),
                Model("MKT w/o PDL", "finetune_wo_pdl", FINETUNE, "pretrain_wo_pdl"),
            ),
        ),
        model="MKT",
        against=("single domain", "MKT w/o TEM (stage 1)", "MKT w/o HFA", "MKT w/o PDL", BOOSTING),
        compared=("auc", "logloss"),
        scores=_boosting,
    ),
    "exit": Study(
        replace(
            EXIT,
            models=(
                *EXIT.models,
                *(
                    Model(f"{model.label}, weighted", f"{model.run}_weighted", model.config, assign=WEIGHTED)
                    for model in EXIT.models
                ),
                Model("w/o SSN", "wo_ssn", "configs/exit_cj_wo_ssn.yaml"),
                Model("w/o ICL", "wo_icl", "configs/exit_cj_wo_icl.yaml"),
                Model("scenes coarse", "coarse", "configs/exit_cj_coarse.yaml"),
                Model("fit: individual", "individual", "configs/exit_cj_individual.yaml"),
                Model("fit: group", "group", "configs/exit_cj_group.yaml"),
                Model("fit: all", "all", "configs/exit_cj_all.yaml"),
                Model("source rows", "source_rows", "configs/exit_cj_source_rows.yaml"),
                Model("L1 on the transfer", "transfer_loss", EXIT_CONFIG, assign=("model.transfer_loss=transfer",)),
                *(
                    Model(
                        f"lambda 3 = {weight}",
                        f"lambda_{weight}",
                        EXIT_CONFIG,
                        assign=(f"model.transfer_weight={weight}",),
                    )
                    for weight in (0.1, 0.3, 3.0, 10.0)
                ),
            ),
        ),
        model="EXIT",
        against=(
            "target only",
            "shared bottom",
            "target only, weighted",
            "shared bottom, weighted",
            "w/o SSN",
            "w/o ICL",
        ),
    ),
}


def seeds(
    name: Annotated[Literal["mkt", "exit"], typer.Argument(help="Which study.")],
    count: Annotated[int, typer.Option("--seeds", help="Seeds 0 to this, less one.")] = 3,
    jobs: Annotated[int, typer.Option(help="Seeds trained at a time, on one thread each if more than one.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and results; runs/NAME-seeds unless told.")
    ] = None,
) -> None:
    """Train what is missing, compare on the test period, write the results."""
    study, out = STUDIES[name], out or Path(f"runs/{name}-seeds")
    tour = study.tour
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that train: together they fill the cores
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda seed: train_all(tour, out / str(seed), seed), range(count)))
    rows = [row for seed in range(count) for row in [*seeded(tour.references(tour.data, seed), seed), *done[seed]]]
    write(rows, [], out)
    write(rows, [found for seed in range(count) for found in compare(study, out / str(seed), seed)], out)


def train_all(tour: Tour, out: Path, seed: int) -> list[Row]:
    """The rows of all models with one seed; trained in order, as one may begin with another."""
    rows: list[Row] = []
    for model in tour.models:
        screen.rule(f"{model.label}, seed {seed}", align="left")
        metrics = tour.train(model, out, seed)
        speed = metrics["train"]["rows_per_second"]
        rows += [{**row, "rows_per_second": speed} for row in seeded(tour.rows(model.label, metrics), seed)]
    return rows


def seeded(rows: list[Row], seed: int) -> list[Row]:
    """The rows with their seed."""
    return [{**row, "seed": seed} for row in rows]


def compare(study: Study, runs: Path, seed: int) -> list[Row]:
    """The study's model against the others, on the same test rows."""
    tour = study.tour
    run_of = {model.label: runs / model.run for model in tour.models}
    score = study.scores(tour.data, seed)
    score |= {label: tour.scores(run_of[label]) for label in (study.model, *study.against) if label in run_of}
    label, user, weight = test_rows(tour)
    found = []
    for other, metric in product(study.against, study.compared):
        pair = score[study.model], score[other]
        result: Comparison = paired_bootstrap(*pair, label, user, weight, metric=metric, seed=seed)
        numbers = {"delta": result.delta, "low": result.low, "high": result.high}
        found.append({"model": study.model, "against": other, "metric": metric, "seed": seed, **numbers})
    return found


def test_rows(tour: Tour) -> tuple[Any, Any, Any]:
    """Label, user and weight of the test rows, in the order of their files."""
    schema = load_config(Path(tour.models[0].config)).data_schema
    column, _, domain = tour.task.partition("@")
    assert schema.weight is not None
    rows = ds.dataset(tour.data / domain / "test", format="parquet").to_table(
        columns=[column, schema.user, schema.weight]
    )
    label, user, weight = (rows[name].to_numpy() for name in (column, schema.user, schema.weight))
    return label.astype(np.float64), user, weight.astype(np.float64)


def write(rows: list[Row], comparisons: list[Row], out: Path) -> None:
    """results.json and results.md."""
    content = {"rows": rows, "comparisons": comparisons}
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["| model | rows of | AUC | GAUC | log loss | calibration | seeds |", "|---|---|---|---|---|---|---|"]
    for model, group in dict.fromkeys((row["model"], row["slice"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["slice"]) == (model, group)]
        cells = [_mean([row[metric] for row in chosen]) for metric in METRICS]
        lines.append(f"| {model} | {group} | {' | '.join(cells)} | {len(chosen)} |")
    lines += ["", "| model | less | metric | seed | difference | 95 % interval |", "|---|---|---|---|---|---|"]
    for c in comparisons:
        names = f"{c['model']} | {c['against']} | {c['metric']} | {c['seed']}"
        lines.append(f"| {names} | {c['delta']:+.4f} | {c['low']:+.4f} to {c['high']:+.4f} |")
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, spread = mean_spread(known)
    return f"{mean:.4f}" if len(known) < 2 or not spread else f"{mean:.4f} ± {spread:.4f}"


if __name__ == "__main__":
    typer.run(seeds)
