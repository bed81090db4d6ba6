"""A study's results for people: Markdown, and one HTML page with plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import plotly.graph_objects as go
from plotly.colors import qualitative

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.evaluation.significance import MIN_USERS, mean_spread
from torchrec_xd.reports.page import Grid, save_page

Results = dict[str, Any]
Row = dict[str, Any]
Part: TypeAlias = "str | Grid | go.Figure"
LABELS = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "ne": "NE", "calibration": "calibration"}
COLOURS = {"better": "#1a7f37", "worse": "#c62828", "can't tell": "#7a869a", "too few users": "#b0b8c4"}
PALETTE = qualitative.Dark24
"""Of models, where a plot tells them by nothing else."""
MARGIN = {"t": 50, "b": 45, "l": 150, "r": 20}


def save_results(results: Results, path: Path) -> None:
    """`path` with .json, .md and .html, each whole or not at all."""
    parts = _parts(results)
    texts = [f"## {part[2:]}" if isinstance(part, str) and part.startswith("# ") else part for part in parts]
    lines = [text.markdown() if isinstance(text, Grid) else text for text in texts if not isinstance(text, go.Figure)]
    write_json(path.with_name(f"{path.name}.json"), results, indent=1)
    write_text(path.with_name(f"{path.name}.md"), f"# {results['study']}\n\n" + "\n\n".join(lines) + "\n")
    save_page(path.with_name(f"{path.name}.html"), str(results["study"]), parts)


def _parts(results: Results) -> list[Part]:
    found: list[Part] = [_how_to_read(results)]
    if results["failed"]:
        missing = [[name, reason] for name, reason in results["failed"].items()]
        found += ["# Missing: these runs failed, and are in no table", Grid(["run", "why"], missing)]
    if results["warnings"]:
        found += ["# Warnings", Grid(["what to know before reading"], [[line] for line in results["warnings"]])]
    if len(results["tasks"]) > 1:
        found += ["# All data sets", *_across(results)]
    for data, task in results["tasks"].items():
        rows = [row for row in results["cells"] if row["data"] == data]
        if rows:
            found += [f"# {data}: {task}", *_data_parts(results, data, rows)]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return [*found, "# Made with", f"{results['hardware']}; {versions}."]


def _how_to_read(results: Results) -> str:
    text = (
        f"Mean ± standard deviation over seeds (0 to {results['seeds'] - 1}); all models on the same test rows. "
        f"Differences are those to '{results['reference']}', with 95 % intervals and p-values of "
        f"{results['samples']:,} paired resamples of users, widened by what other seeds may do. A verdict stands where "
        'the p-value, corrected by Holm for all comparisons on its data set, is below 0.05; all else is "can\'t tell", '
        f'which is not "equal". Intervals are widened for few users; below {MIN_USERS} there is no verdict.'
    )
    outside = dict.fromkeys(row["model"] for row in results["cells"] if row["parameters"] is None)
    if outside:
        text += f" Trained elsewhere, only their scores are known: {', '.join(outside)}."
    if results["tuned"] is None:
        return f"{text} No model was tuned for this study: settings are those of its configs."
    return f"{text} Settings were chosen on the validation split, {results['tuned']['trials']} trials for every model."


def _data_parts(results: Results, data: str, rows: Sequence[Row]) -> list[Part]:
    models = list(dict.fromkeys(row["model"] for row in rows))
    verdicts = [line for line in results["verdicts"] if line["data"] == data]
    oracle = results["oracle"].get(data, {})
    found: list[Part] = [_quality(rows, models, verdicts)]
    if verdicts:
        found += [_difference_figure(verdicts, metric) for metric in dict.fromkeys(line["metric"] for line in verdicts)]
    if oracle:
        found += [
            "Distance to the oracle, which knows the true probabilities; 0 is the best there is.",
            _oracle(rows, models, oracle),
        ]
    if results["tuned"] is not None:
        best = results["tuned"]["best"][data]
        found += [
            f"Settings that were chosen, on {results['tuned']['on'][data]}.",
            Grid(["model", "settings"], [[m, "; ".join(map(_short, best[m]))] for m in models if m in best]),
        ]
    found += ["Cost and quality.", _cost(rows, models), _cost_figure(rows, models)]
    columns = list(dict.fromkeys(column for row in rows for column in row["groups"]))
    for column in columns:
        found += [f"By {column}: mean over seeds.", _groups(rows, models, column), _group_figure(rows, models, column)]
        if lines := [line for line in results["slice_verdicts"] if (line["data"], line["column"]) == (data, column)]:
            found += [
                f"By {column}: differences. Verdicts are corrected for all {len(lines)} comparisons of this table.",
                _slice_verdicts(lines),
            ]
    return found


def _of(rows: Sequence[Row], model: str, *keys: str) -> list[float]:
    """A number of every seed of a model, found under these keys of its rows; unknown ones are left out."""
    found = []
    for row in rows:
        value: Any = row if row["model"] == model else None
        for key in keys:
            value = None if value is None else value.get(key)
        if value is not None:
            found.append(value)
    return found


def _across(results: Results) -> list[Part]:
    """AUC and training speed of every model on every data set."""
    datasets = list(results["tasks"])
    rows = {data: [row for row in results["cells"] if row["data"] == data] for data in datasets}
    models = list(dict.fromkeys(row["model"] for row in results["cells"]))
    verdict_of = {(v["model"], v["data"]): v["verdict"] for v in results["verdicts"] if v["metric"] == "auc"}
    oracle = [results["oracle"].get(data, {}).get("auc") for data in datasets]
    lines, figure = [], go.Figure()
    for model in models:
        values = [_of(rows[data], model, "auc") for data in datasets]
        verdicts = [verdict_of.get((model, data), "") for data in datasets]
        marks = [f" {verdict}" if verdict in ("better", "worse") else "" for verdict in verdicts]
        lines.append([model, *(_text(found) + mark for found, mark in zip(values, marks, strict=True))])
        spread = {"type": "data", "array": [mean_spread(found)[1] if found else None for found in values]}
        figure.add_scatter(x=datasets, y=[_mean(found) for found in values], name=model, error_y=spread)
    if any(oracle):
        lines.append(["oracle", *("–" if best is None else f"{best:.4f}" for best in oracle)])
        figure.add_scatter(x=datasets, y=oracle, name="oracle", line={"dash": "dot", "color": "#1c2733"})
    figure.update_layout(title="AUC by data set", height=460, margin=MARGIN, colorway=PALETTE)
    speed = [[m, *(_whole(_of(rows[data], m, "rows_per_second")) for data in datasets)] for m in models]
    return [
        f"AUC; better or worse than '{results['reference']}' where the verdict is significant.",
        Grid(["model", *datasets], lines),
        figure,
        "Rows per second of training.",
        Grid(["model", *datasets], speed),
    ]


def _short(assignment: str) -> str:
    """`a.b=0.0123456` as `a.b=0.0123`."""
    key, _, value = assignment.partition("=")
    return f"{key}={float(value):.3g}" if re.fullmatch(r"-?\d+\.\d{3,}", value) else assignment


def _mean(values: Sequence[float]) -> float | None:
    return mean_spread(values)[0] if values else None


def _text(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, spread = mean_spread(values)
    return f"{mean:.4f} ± {spread:.4f}" if len(values) > 1 else f"{mean:.4f}"


def _quality(rows: Sequence[Row], models: Sequence[str], verdicts: Sequence[Row]) -> Grid:
    compared = list(dict.fromkeys(line["metric"] for line in verdicts))
    of = {(line["model"], line["metric"]): line for line in verdicts}
    lines = []
    for model in models:
        numbers = [_text(_of(rows, model, metric)) for metric in LABELS]
        compared_with = [_verdict(of.get((model, metric))) for metric in compared]
        lines.append([model, *numbers, *compared_with, str(len(_of(rows, model, "seed")))])
    return Grid(["model", *LABELS.values(), *(f"Δ {LABELS[metric]}" for metric in compared), "seeds"], lines)


def _verdict(line: Row | None) -> str:
    if line is None:
        return "–"
    users = f"{line['users']:,} users" if line["users"] != 1 else "1 user"
    interval = "no interval" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
    return f"{line['delta']:+.4f} ({interval}; {users}) {line['verdict']}"


def _slice_verdicts(lines: Sequence[Row]) -> Grid:
    """A row for each model and group."""
    compared = list(dict.fromkeys(line["metric"] for line in lines))
    of = {(line["model"], line["group"], line["metric"]): line for line in lines}
    pairs = dict.fromkeys((line["model"], line["group"]) for line in sorted(lines, key=lambda line: line["model"]))
    rows = [[model, group, *(_verdict(of.get((model, group, m))) for m in compared)] for model, group in pairs]
    return Grid(["model", "group", *(f"Δ {LABELS[metric]}" for metric in compared)], rows)


def _oracle(rows: Sequence[Row], models: Sequence[str], oracle: dict[str, float]) -> Grid:
    known = [metric for metric in LABELS if metric in oracle]
    lines = [["oracle", *(f"{oracle[metric]:.4f}" for metric in known)]]
    for model in models:
        away = [_text([abs(oracle[metric] - value) for value in _of(rows, model, metric)]) for metric in known]
        lines.append([model, *away])
    return Grid(["model", *(LABELS[metric] for metric in known)], lines)


def _cost(rows: Sequence[Row], models: Sequence[str]) -> Grid:
    lines = []
    for model in models:
        weights = [_of(rows, model, "parameters", part)[:1] for part in ("dense", "tables", "frozen")]
        speed = _of(rows, model, "rows_per_second")
        memory = [peak / 2**20 for peak in _of(rows, model, "peak_memory_bytes")]
        lines.append([model, *(_whole(values) for values in (*weights, speed, memory))])
    return Grid(["model", "dense weights", "table weights", "frozen weights", "rows/s", "peak memory, MiB"], lines)


def _whole(values: Sequence[float]) -> str:
    mean = _mean(values)
    return "–" if mean is None else f"{mean:,.0f}"


def _group_names(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(group for row in rows for group in row["groups"].get(column, {})))


def _groups(rows: Sequence[Row], models: Sequence[str], column: str) -> Grid:
    shown = [(group, metric) for group in _group_names(rows, column) for metric in ("auc", "gauc", "logloss")]
    lines = [
        [model, *(_text(_of(rows, model, "groups", column, group, metric)) for group, metric in shown)]
        for model in models
    ]
    return Grid(["model", *(f"{LABELS[metric]}, {group}" for group, metric in shown)], lines)


def _difference_figure(verdicts: Sequence[Row], metric: str) -> go.Figure:
    lines = [line for line in verdicts if line["metric"] == metric][::-1]
    figure = go.Figure(
        go.Scatter(
            x=[line["delta"] for line in lines],
            y=[line["model"] for line in lines],
            mode="markers",
            marker={"size": 9, "color": [COLOURS[line["verdict"]] for line in lines]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [None if line["high"] is None else line["high"] - line["delta"] for line in lines],
                "arrayminus": [None if line["low"] is None else line["delta"] - line["low"] for line in lines],
            },
            text=[_on_hover(line) for line in lines],
            hovertemplate="%{y}: %{x:+.4f}<br>%{text}<extra></extra>",
        )
    )
    side = "left of 0 is better" if metric == "logloss" else "right of 0 is better"
    figure.update_layout(
        title=f"{LABELS[metric]} less the reference's ({side})", height=110 + 26 * len(lines), margin=MARGIN
    )
    figure.add_vline(x=0, line={"color": "#1c2733", "width": 1})
    return figure


def _on_hover(line: Row) -> str:
    p = "" if line["p_holm"] is None else f", p {line['p_holm']:.4f}"
    return f"{line['verdict']}{p}, {line['users']:,} users"


def _cost_figure(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    figure = go.Figure()
    for model in models:
        speed, quality = (_mean(_of(rows, model, key)) for key in ("rows_per_second", "auc"))
        if speed is None:  # a model from outside
            continue
        figure.add_scatter(
            x=[speed], y=[quality], mode="markers+text", text=[model], textposition="top center", name=model
        )
    figure.update_layout(title="AUC against training speed", height=420, margin=MARGIN, showlegend=False)
    figure.update_xaxes(title="rows per second")
    figure.update_yaxes(title="AUC")
    return figure


def _group_figure(rows: Sequence[Row], models: Sequence[str], column: str) -> go.Figure:
    groups, figure = _group_names(rows, column), go.Figure()
    for model in models:
        means = [_mean(_of(rows, model, "groups", column, group, "auc")) for group in groups]
        figure.add_scatter(x=groups, y=means, mode="markers", name=model, marker={"size": 9})
    figure.update_layout(colorway=PALETTE, title=f"AUC by {column}", height=380, margin=MARGIN)
    figure.update_xaxes(type="category", title=column)
    return figure
