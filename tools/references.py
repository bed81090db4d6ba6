"""What plain counting and tree boosting reach on the coupons of `cj_feed`: `python -m tools.references`.

A network that sees the same facts and more should beat the trees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import typer
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier

from torchrec_xd.data.predictions import PredictionColumns, PredictionWriter
from torchrec_xd.datasets.complete_journey.journey import PROVENANCE
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import binary_metrics
from torchrec_xd.evaluation.spread_rows import Result

DOMAIN, LABEL, USER = "coupon", "redeemed", "household"
TASK = f"{LABEL}@{DOMAIN}"
COUNT = "item_purchases_log"
"""Earlier purchases of the products that the coupon covers; ranks as the count itself does."""
FACTS = (
    COUNT,
    "item_quantity_log",
    "item_recency_log",
    "category_purchases_log",
    "covered_bought",
    "covered_products",
    "redemptions_log",
    "campaign_type",
)
BOOSTED = {"boosting": (*FACTS, "purchases_30d_log"), "boosting_coupons": (*FACTS, "coupon_purchases_log")}
"""Model -> the nine columns that it reads, all of them features of the schema too. They differ in one: how much the
household bought lately, or how much it ever bought with a coupon of any kind (far better on `valid`)."""
SLICES = {"all": (1, 2, 3), "A": (1,), "B+C": (2, 3)}
"""Campaign types."""
TREES = {"max_iter": 200, "learning_rate": 0.05, "max_leaf_nodes": 8, "min_samples_leaf": 50}
"""Chosen on `valid`."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
screen = Console(highlight=False)
if not screen.is_terminal:
    screen = Console(highlight=False, width=150)


@app.command()
def references(
    data: Annotated[Path, typer.Option(help="Folder that `torchrec-xd prepare cj_feed` wrote.")] = Path("data/cj_feed"),
    split: Annotated[str, typer.Option(help="test (trained on train + valid) or valid (trained on train).")] = "test",
    out: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of the boosting: 0 to this, less one.")] = 1,
    scores: Annotated[Path | None, typer.Option(help="Write SEED/MODEL.parquet here, for studies.")] = None,
) -> None:
    """Score the coupons of one split by counting and by boosting."""
    if scores is not None and split != "test":
        raise UserError(f"--scores with --split {split}: studies compare on the test rows; leave --split out")
    rows = []
    for seed in range(seeds):
        found = reference_rows(data, split, seed, None if scores is None else scores / str(seed))
        rows += [{**row, "seed": seed} for row in found]
    _show(rows)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def reference_rows(data: Path, split: str = "test", seed: int = 0, out: Path | None = None) -> list[dict[str, Any]]:
    """Metrics of the references, a row per model and slice.

    Args:
        data: folder of the prepared `cj_feed`.
        split: `test` (trained on train and valid) or `valid` (trained on train alone).
        seed: of the boosting.
        out: folder for their scores, `MODEL.parquet`, as studies take them of models from outside.

    Raises:
        UserError: another split, or no prepared data.
    """
    training = {"test": ("train", "valid"), "valid": ("train",)}.get(split)
    if training is None:
        raise UserError(f"split '{split}' cannot be scored; choose test or valid")
    fitted = pa.concat_tables([_coupons(data, name) for name in training])
    scored = _coupons(data, split)
    scores = {"counting": _matrix(scored, (COUNT,))[:, 0], **_boosted_scores(fitted, scored, seed)}
    if out is not None:
        for model, score in scores.items():
            columns = PredictionColumns(USER, (), (TASK,))
            with PredictionWriter(out / f"{model}.parquet", columns) as writer:
                writer.write(columns.table(scored[USER].to_numpy(), score[None].astype(np.float32)))
    return [
        row for model, score in scores.items() for row in _rows(model, score, scored, probability=model != "counting")
    ]


def _boosted_scores(fitted: pa.Table, scored: pa.Table, seed: int) -> dict[str, Any]:
    """Probabilities of the boosted models for the rows of `scored`, fitted on the rows of `fitted`."""
    scores = {}
    for model, columns in BOOSTED.items():
        trees = HistGradientBoostingClassifier(random_state=seed, **TREES)
        trees.fit(_matrix(fitted, columns), fitted[LABEL].to_numpy())
        scores[model] = trees.predict_proba(_matrix(scored, columns))[:, 1]
    return scores


def _coupons(data: Path, split: str) -> pa.Table:
    """The coupon rows of one split, in the order of their files."""
    folder = data / DOMAIN / split
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run: torchrec-xd prepare cj_feed --out {data}")
    return ds.dataset(folder, format="parquet").to_table(
        columns=[*{name for names in BOOSTED.values() for name in names}, LABEL, USER]
    )


def _matrix(rows: pa.Table, columns: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.column_stack([rows[name].to_numpy().astype(np.float64) for name in columns])


def _rows(model: str, score: Any, exposures: pa.Table, *, probability: bool) -> list[dict[str, Any]]:
    """One row per slice; log loss and calibration are None where the score is no probability."""
    columns = [exposures[name].to_numpy() for name in (LABEL, USER, "campaign_type")]
    rows = []
    for name, types in SLICES.items():
        chosen = np.isin(columns[2], types)
        result: Result = binary_metrics(score[chosen], columns[0][chosen].astype(np.float64), columns[1][chosen])
        metrics = result.as_dict()
        calibrated = {key: metrics[key] if probability else None for key in ("logloss", "calibration")}
        ranked = {key: metrics[key] for key in ("auc", "gauc", "rows", "positives")}
        rows.append({"model": model, "task": TASK, "domain": DOMAIN, "slice": name, **ranked, **calibrated})
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "seed", "slice", "AUC", "GAUC", "log loss", "calibration", "rows", "positives")
    for row in rows:
        metrics = ["-" if row[k] is None else f"{row[k]:.4f}" for k in ("auc", "gauc", "logloss", "calibration")]
        counts = [f"{row[k]:,}" for k in ("rows", "positives")]
        table.add_row(row["model"], str(row["seed"]), row["slice"], *metrics, *counts)
    screen.print(table)
    screen.print(PROVENANCE, markup=False)


if __name__ == "__main__":
    run_command(app)
