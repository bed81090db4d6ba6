"""MKT, its ablations, the single-domain model and tree boosting on `cj_feed`, over several seeds.

    python -m tools.seeds --seeds 3 --out runs/seeds

Every run that is there already is reused; what a stop interrupted goes on. Writes `results.json` and `results.md`:
mean and standard deviation over seeds, and per seed the paired bootstrap over households of the AUC difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from tools.quickstart import DATA, TASK, Model, command, model_rows, screen, train
from tools.references import LABEL, USER, boosted_scores, coupons, reference_rows
from torchrec_xd.statistics import Comparison, mean_spread, paired_bootstrap

MKT, SINGLE, BOOSTING = "MKT", "single domain", "boosting_coupons"
MODELS = (
    Model(SINGLE, "single", "configs/single_cj.yaml"),
    Model("MKT w/o TEM (stage 1)", "pretrain", "configs/mkt_cj_pretrain.yaml"),
    Model(MKT, "finetune", "configs/mkt_cj_finetune.yaml", "pretrain"),
    Model("stage 1 w/o HFA", "pretrain_wo_hfa", "configs/mkt_cj_pretrain_wo_hfa.yaml"),
    Model("MKT w/o HFA", "finetune_wo_hfa", "configs/mkt_cj_finetune.yaml", "pretrain_wo_hfa"),
    Model("stage 1 w/o PDL", "pretrain_wo_pdl", "configs/mkt_cj_pretrain_wo_pdl.yaml"),
    Model("MKT w/o PDL", "finetune_wo_pdl", "configs/mkt_cj_finetune.yaml", "pretrain_wo_pdl"),
)
SLICES = ("all", "A", "B+C")
METRICS = ("auc", "gauc", "logloss", "calibration")


def seeds(
    count: Annotated[int, typer.Option("--seeds", help="Seeds 0 to this, less one.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the runs and results.")] = Path("runs/seeds"),
) -> None:
    """Train what is missing, compare on the test period, write the results."""
    rows = [{**row, "seed": seed} for seed in range(count) for row in reference_rows(DATA, seed=seed)]
    comparisons: list[dict[str, Any]] = []
    for model in MODELS:
        for seed in range(count):
            screen.rule(f"{model.label}, seed {seed}", align="left")
            metrics = train(model, out / str(seed), seed)
            speed = metrics["train"]["rows_per_second"]
            rows += [{**row, "seed": seed, "rows_per_second": speed} for row in model_rows(model.label, metrics)]
            if model.label == MKT:
                comparisons += compare(out / str(seed), seed)
            write(rows, comparisons, out)


def compare(runs: Path, seed: int) -> list[dict[str, Any]]:
    """MKT against the single-domain model and against boosting, on the same rows."""
    fitted = [coupons(DATA, split) for split in ("train", "valid")]
    test = coupons(DATA, "test")
    score = {
        MKT: predictions(runs / "finetune"),
        SINGLE: predictions(runs / "single"),
        BOOSTING: boosted_scores(pa.concat_tables(fitted), test, seed)[BOOSTING],
    }
    label, user = test[LABEL].to_numpy().astype(np.float64), test[USER].to_numpy()
    found = []
    for other in (SINGLE, BOOSTING):
        result: Comparison = paired_bootstrap(score[MKT], score[other], label, user, metric="auc", seed=seed)
        found.append(
            {
                "model": MKT,
                "against": other,
                "seed": seed,
                "delta": result.delta,
                "low": result.low,
                "high": result.high,
            }
        )
    return found


def predictions(run: Path) -> Any:
    """A run's probabilities for the test coupons, in the order of their files."""
    path = run / "test.parquet"
    if not path.exists() or path.stat().st_mtime < (run / "metrics.json").stat().st_mtime:
        command("score", run, DATA.absolute() / "coupon" / "test", "--domain", "coupon", "--out", path)
    return pq.read_table(path)[f"prob_{TASK}"].to_numpy()


def write(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]], out: Path) -> None:
    """results.json and results.md."""
    content = {"rows": rows, "comparisons": comparisons}
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["| model | campaigns | AUC | GAUC | log loss | calibration | seeds |", "|---|---|---|---|---|---|---|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        for name in SLICES:
            chosen = [row for row in rows if row["model"] == model and row["slice"] == name]
            cells = [_mean([row[metric] for row in chosen]) for metric in METRICS]
            lines.append(f"| {model} | {name} | {' | '.join(cells)} | {len(chosen)} |")
    lines += ["", "| AUC of | less that of | seed | difference | 95 % interval |", "|---|---|---|---|---|"]
    lines += [
        f"| {c['model']} | {c['against']} | {c['seed']} | {c['delta']:+.4f} | {c['low']:+.4f} to {c['high']:+.4f} |"
        for c in comparisons
    ]
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, spread = mean_spread(known)
    return f"{mean:.4f}" if len(known) < 2 or not spread else f"{mean:.4f} ± {spread:.4f}"


if __name__ == "__main__":
    typer.run(seeds)
