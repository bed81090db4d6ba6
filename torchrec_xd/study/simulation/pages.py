"""A simulation's results for people: Markdown, and one HTML page with a figure for every question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.evaluation.significance import mean_spread
from torchrec_xd.reports.page import Folded, Grid, Part, number_text, save_page

Results = dict[str, Any]
PALETTE = qualitative.Dark24
MARGIN = {"t": 50, "b": 45, "l": 70, "r": 20}
DAILY = {
    "expected": "Expected clicks per impression (the truth, without the chance of a click)",
    "ctr": "Observed clicks per impression",
    "regret": "Regret: expected clicks per impression below the best choice for the same requests",
    "coverage": "Share of the living items that are shown",
    "gini": "Inequality of impressions over living items (Gini: 0 even, 1 all on one)",
    "top_share": "Share of the impressions on the most shown hundredth of the living items",
    "calibration": "Predicted over true probability of what is shown (1 is right)",
    "auc": "AUC on rows that are shown by chance that day",
}
"""Numbers of a day, and the titles of their figures."""
ENDS = 7
"""Days at the beginning and at the end that the table compares."""


def save_simulation(results: Results, path: Path) -> None:
    """`path` with .json, .md and .html, each whole or not at all."""
    parts = _parts(results)
    texts = [f"## {part[2:]}" if isinstance(part, str) and part.startswith("# ") else part for part in parts]
    lines = [line for text in texts if not isinstance(text, go.Figure) for line in _markdown(text)]
    write_json(path.with_name(f"{path.name}.json"), results, indent=1)
    write_text(path.with_name(f"{path.name}.md"), f"# {results['simulation']}\n\n" + "\n\n".join(lines) + "\n")
    save_page(path.with_name(f"{path.name}.html"), str(results["simulation"]), parts)


def _markdown(part: str | Grid | Folded) -> list[str]:
    if isinstance(part, Folded):
        return [part.summary, part.grid.markdown()]
    return [part.markdown() if isinstance(part, Grid) else part]


def _parts(results: Results) -> list[Part]:
    found: list[Part] = [
        _how_to_read(results),
        _summary(results),
        "# A/B difference, day by day",
        _sequence_text(results),
    ]
    found += [_sequence_figure(results, arm) for arm in results["arms"] if arm != results["reference"]]
    found += [_sequence_table(results), "# Day by day"]
    for key, title in DAILY.items():
        if any(value is not None for arm in results["arms"] for value in _by_day(results, arm, key)):
            found += [_daily_figure(results, key, title), Folded(f"{title}.", _daily_table(results, key))]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return [*found, "# Made with", f"{results['hardware']}; {versions}."]


def _how_to_read(results: Results) -> str:
    logs = "the rows that they have shown" if results["logs"] == "own" else "the rows that all arms have shown"
    window = results["window"]
    how = f"anew on {logs}, of the {window} days before"
    if results["training"] == "continue":
        how = f"on {logs} the day before, and go on from yesterday's"
    seeds = "seed" if results["seeds"] == 1 else "seeds"
    return (
        f"{results['days']} days in the planted world '{results['world']['preset']}', after {results['warmup']} whose "
        f"rows were shown by chance. Each day {results['requests']:,} requests of all arms together; for each, "
        f"{results['places']} of up to {results['candidates']} candidates are shown. Users belong to one arm for good. "
        f"Models are trained every day {how}. Mean ± standard deviation "
        f"over {results['seeds']} {seeds}, each with a world of its own. Verdicts compare all days with those of "
        f"'{results['reference']}', by {results['samples']:,} resamples of users, widened by what other seeds may do "
        'and corrected by Holm; "can\'t tell" is not "equal".'
    )


def _by_day(results: Results, arm: str, key: str) -> list[float | None]:
    """The mean over seeds of a number of each day."""
    found = []
    for day in range(results["days"]):
        values = [_number(line, key) for line in results["daily"] if (line["arm"], line["day"]) == (arm, day)]
        known = [value for value in values if value is not None]
        found.append(mean_spread(known)[0] if known else None)
    return found


def _number(line: dict[str, Any], key: str) -> float | None:
    if key == "auc":
        return None if line["random_traffic"] is None else line["random_traffic"]["auc"]
    return line[key]  # type: ignore[no-any-return]


def _of_seeds(results: Results, arm: str, key: str, days: range) -> str:
    """Mean ± standard deviation over seeds of the mean over some days."""
    means = []
    for seed in range(results["seeds"]):
        lines = [
            line for line in results["daily"] if (line["arm"], line["seed"]) == (arm, seed) and line["day"] in days
        ]
        values = [value for line in lines if (value := _number(line, key)) is not None]
        means += [mean_spread(values)[0]] if values else []
    if not means:
        return "–"
    mean, spread = mean_spread(means)
    return f"{mean:.4f} ± {spread:.4f}" if len(means) > 1 else f"{mean:.4f}"


def _summary(results: Results) -> Grid:
    days = results["days"]
    ends = min(ENDS, days)
    periods = {f"days 0-{ends - 1}": range(ends), f"days {days - ends}-{days - 1}": range(days - ends, days)}
    header = [
        "arm",
        "expected",
        *(f"expected, {name}" for name in periods),
        "CTR",
        "best possible",
        "regret",
        "coverage",
    ]
    header += ["Gini", "top 1 %", "calibration", "AUC by chance", "Δ expected", "Δ CTR"]
    every, rows = range(days), []
    for arm in results["arms"]:
        numbers = [_of_seeds(results, arm, "expected", period) for period in (every, *periods.values())]
        others = ("ctr", "best", "regret", "coverage", "gini", "top_share", "calibration", "auc")
        numbers += [_of_seeds(results, arm, key, every) for key in others]
        rows.append([arm, *numbers, *(_verdict(results, arm, metric) for metric in ("expected", "ctr"))])
    return Grid(header, rows)


def _verdict(results: Results, arm: str, metric: str) -> str:
    for line in results["verdicts"]:
        if (line["arm"], line["metric"]) == (arm, metric):
            interval = "no interval" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
            return f"{line['delta']:+.4f} ({interval}) {line['verdict']}"
    return "–"


def _sequence_text(results: Results) -> str:
    return (
        f"Observed clicks per impression less those of '{results['reference']}', over all days so far, mean of the "
        "seeds. The band is a 95 % confidence sequence (Robbins' normal mixture, users as units): it holds for all "
        "days together, so that a test may be looked at every day and stopped when the band leaves 0. The dotted line "
        "is the truth: the same of expected clicks."
    )


def _differences(results: Results, arm: str, seed: int | None) -> list[dict[str, Any]]:
    return [line for line in results["differences"] if (line["arm"], line["seed"]) == (arm, seed)]


def _sequence_figure(results: Results, arm: str) -> go.Figure:
    lines = _differences(results, arm, None)
    days = [line["day"] for line in lines]
    figure = go.Figure()
    figure.add_scatter(
        x=days, y=[line["high"] for line in lines], mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip"
    )
    figure.add_scatter(
        x=days,
        y=[line["low"] for line in lines],
        mode="lines",
        line={"width": 0},
        fill="tonexty",
        fillcolor="rgba(46,125,200,.18)",
        name="confidence sequence",
    )
    figure.add_scatter(x=days, y=[line["difference"] for line in lines], name="observed", line={"color": "#1f4e9c"})
    truth = [line["true_difference"] for line in lines]
    figure.add_scatter(x=days, y=truth, name="truth", line={"color": "#1c2733", "dash": "dot"})
    figure.add_hline(y=0, line={"color": "#7a869a", "width": 1})
    figure.update_layout(title=f"{arm} less {results['reference']}, over all days so far", height=360, margin=MARGIN)
    figure.update_xaxes(title="day")
    return figure


def _sequence_table(results: Results) -> Grid:
    """Of every arm and seed: the interval of the last day, and the first day whose interval excludes 0."""
    rows = []
    for arm in (arm for arm in results["arms"] if arm != results["reference"]):
        for seed in (*range(results["seeds"]), None):
            lines = _differences(results, arm, seed)
            first = next((line["day"] for line in lines if line["low"] is not None and _excludes_zero(line)), None)
            last = lines[-1]
            interval = "–" if last["low"] is None else f"{last['low']:+.4f} to {last['high']:+.4f}"
            name = "all" if seed is None else str(seed)
            delta, truth = (number_text(last[key], "+.4f") for key in ("difference", "true_difference"))
            rows.append([arm, name, delta, interval, truth, "never" if first is None else str(first)])
    return Grid(["arm", "seed", "difference, all days", "confidence sequence", "truth", "excludes 0 from day"], rows)


def _excludes_zero(line: dict[str, Any]) -> bool:
    return bool(line["low"] > 0 or line["high"] < 0)


def _daily_figure(results: Results, key: str, title: str) -> go.Figure:
    days, figure = list(range(results["days"])), go.Figure()
    for arm in results["arms"]:
        figure.add_scatter(x=days, y=_by_day(results, arm, key), name=arm)
    if key == "expected":
        best = _by_day(results, results["reference"], "best")
        figure.add_scatter(x=days, y=best, name="best possible", line={"dash": "dot", "color": "#1c2733"})
    figure.update_layout(colorway=PALETTE, title=title, height=380, margin=MARGIN)
    figure.update_xaxes(title="day")
    return figure


def _daily_table(results: Results, key: str) -> Grid:
    columns: list[Sequence[float | None]] = [_by_day(results, arm, key) for arm in results["arms"]]
    rows = [[str(day), *(number_text(column[day]) for column in columns)] for day in range(results["days"])]
    return Grid(["day", *results["arms"]], rows)
