"""A replay's results for people: Markdown, and one HTML page with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import plotly.graph_objects as go

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.reports.page import Folded, Grid, number_text, save_page
from torchrec_xd.study.pages import COLOURS, LABELS, MARGIN, PALETTE
from torchrec_xd.study.replay.measures import FEW, GROUPS
from torchrec_xd.study.replay.verdicts import MIN_BLOCKS, TOO_FEW

Results = dict[str, Any]
Line = dict[str, Any]
Part: TypeAlias = "str | Grid | Folded | go.Figure"
SHOWN = ("auc", "logloss", "calibration")
"""Metrics that are plotted slice by slice."""


def save_replay(results: Results, path: Path) -> None:
    """`path` with .json, .md and .html, each whole or not at all."""
    parts = _parts(results)
    texts = [f"## {part[2:]}" if isinstance(part, str) and part.startswith("# ") else part for part in parts]
    lines = [_markdown(text) for text in texts if not isinstance(text, go.Figure)]
    write_json(path.with_name(f"{path.name}.json"), results, indent=1)
    write_text(path.with_name(f"{path.name}.md"), f"# {results['replay']}\n\n" + "\n\n".join(lines) + "\n")
    save_page(path.with_name(f"{path.name}.html"), str(results["replay"]), parts)


def _markdown(part: str | Grid | Folded) -> str:
    if isinstance(part, Folded):
        return f"{part.summary}\n\n{part.grid.markdown()}"
    return part if isinstance(part, str) else part.markdown()


def _parts(results: Results) -> list[Part]:
    found: list[Part] = [_how_to_read(results)]
    if results["failed"]:
        missing = [[name, reason] for name, reason in results["failed"].items()]
        found += ["# Missing: these steps failed", Grid(["step", "why"], missing)]
    scores = results["scores"]
    for model, task in dict.fromkeys((line["model"], line["task"]) for line in scores):
        of = [line for line in scores if (line["model"], line["task"]) == (model, task)]
        lines = [line for line in results["verdicts"] if (line["model"], line["task"]) == (model, task)]
        found += [f"# {model}: {task}", _means(of, results), *_verdicts(lines)]
        for metric in SHOWN:
            found += _by_slice(
                f"{LABELS[metric]} by slice",
                results,
                [line["slice"] for line in of],
                results["policies"],
                lambda policy, date, of=of, metric=metric: _mean(  # type: ignore[misc]
                    of, metric, policy=policy, slice=date
                ),
            )
        found += [
            f"By the user's rows so far ({FEW} and more: many): means over slices and seeds.",
            _activity(of, results),
        ]
    return [*found, *_history(results), *_cost(results), "# Made with", _made_with(results)]


def _how_to_read(results: Results) -> str:
    dates = [each["date"] for each in results["slices"]]
    first = dates[results["warm_up"]]
    window = f" the last {results['window']}" if results["window"] else " all"
    return (
        f"{len(dates)} slices, {dates[0]} to {dates[-1]}; the first {results['warm_up']} are the warm-up. Every later "
        "slice is scored by models that have not seen it, and then trained on as the policy says: never; scratch (anew "
        f"on{window} slices so far); incremental (goes on with the newest slice). Seeds 0 to {results['seeds'] - 1}. "
        f"Slice {first} is scored by the model of the warm-up under all policies and does not count in means and "
        f"differences. Differences are those to '{results['reference']}': means over slices, with 95 % intervals and "
        f"p-values of {results['samples']:,} resamples of blocks of slices, widened for few blocks and by what other "
        "seeds may do. A verdict stands where the p-value, corrected by Holm for all comparisons of a model and task, "
        f'is below 0.05; all else is "can\'t tell", not "equal". Below {MIN_BLOCKS} blocks there is no verdict.'
    )


def _mean(lines: Sequence[Line], key: str, **where: object) -> float | None:
    """Mean of a number over the lines that have these values."""
    values = [line[key] for line in lines if all(line[name] == value for name, value in where.items())]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _later(lines: Sequence[Line], results: Results) -> list[Line]:
    first = results["slices"][results["warm_up"]]["date"]
    return [line for line in lines if line["slice"] != first]


def _means(lines: Sequence[Line], results: Results) -> Grid:
    of = _later(lines, results)
    rows = [
        [policy, *(number_text(_mean(of, metric, policy=policy)) for metric in LABELS)]
        for policy in results["policies"]
    ]
    return Grid(["mean over slices", *LABELS.values()], rows)


def _verdicts(lines: Sequence[Line]) -> list[Part]:
    if not lines:
        return []
    rows = [
        [
            line["policy"],
            LABELS[line["metric"]],
            f"{line['delta']:+.4f}",
            "–" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}",
            number_text(line["p_holm"]),
            f"{line['slices']} ({line['blocks']} blocks of {line['block']})",
            line["verdict"],
        ]
        for line in lines
    ]
    header = ["policy", "metric", "difference", "interval", "p (Holm)", "slices", "verdict"]
    figures = [_difference(lines, metric) for metric in dict.fromkeys(line["metric"] for line in lines)]
    return [Grid(header, rows), *figures]


def _difference(lines: Sequence[Line], metric: str) -> go.Figure:
    of = [line for line in lines if line["metric"] == metric][::-1]
    colours = {**COLOURS, TOO_FEW: COLOURS["too few users"]}
    figure = go.Figure(
        go.Scatter(
            x=[line["delta"] for line in of],
            y=[line["policy"] for line in of],
            mode="markers",
            marker={"size": 9, "color": [colours[line["verdict"]] for line in of]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [None if line["high"] is None else line["high"] - line["delta"] for line in of],
                "arrayminus": [None if line["low"] is None else line["delta"] - line["low"] for line in of],
            },
            text=[line["verdict"] for line in of],
            hovertemplate="%{y}: %{x:+.4f}<br>%{text}<extra></extra>",
        )
    )
    side = "left of 0 is better" if metric == "logloss" else "right of 0 is better"
    margin = {**MARGIN, "l": 220}
    figure.update_layout(
        title=f"{LABELS[metric]} less the reference's ({side})", height=110 + 26 * len(of), margin=margin
    )
    figure.add_vline(x=0, line={"color": "#1c2733", "width": 1})
    return figure


def _by_slice(
    title: str,
    results: Results,
    dates: Sequence[str],
    names: Sequence[str],
    value: Callable[[str, str], float | int | None],
) -> list[Part]:
    """A line for each name, and the numbers folded."""
    order = [each["date"] for each in results["slices"] if each["date"] in set(dates)]
    figure = go.Figure()
    for name in names:
        figure.add_scatter(x=order, y=[value(name, date) for date in order], name=name, mode="lines+markers")
    figure.update_layout(title=title, height=380, margin=MARGIN, colorway=PALETTE)
    figure.update_xaxes(type="category")
    rows = [[date, *(number_text(value(name, date)) for name in names)] for date in order]
    return [figure, Folded(f"{title}: the numbers", Grid(["slice", *names], rows))]


def _activity(lines: Sequence[Line], results: Results) -> Grid:
    rows = []
    for policy in results["policies"]:
        of = [line["activity"] for line in _later(lines, results) if line["policy"] == policy]
        numbers = []
        for group in GROUPS:
            found = [each[group] for each in of if group in each]
            numbers += [number_text(_mean(found, metric)) for metric in SHOWN]
            numbers.append(number_text(round(fmean([each["rows"] for each in found])) if found else None))
        rows.append([policy, *numbers])
    names = [f"{name}, {group}" for group in GROUPS for name in (*(LABELS[m] for m in SHOWN), "rows a slice")]
    return Grid(["policy", *names], rows)


def _history(results: Results) -> list[Part]:
    dates = [each["date"] for each in results["slices"]]
    place = {date: number for number, date in enumerate(dates)}
    tables, drift = results["tables"], results["drift"]
    scored = dates[results["warm_up"] :]

    def of(values: Mapping[str, Any], *keys: str) -> Callable[[str, str], float | int | None]:
        def value(name: str, date: str) -> float | int | None:
            found = values[name]
            for key in keys:
                found = found[key]
            number: float | int | None = found[place[date]]
            return number

        return value

    names = list(tables)
    growing = [name for name in names if len(set(tables[name]["rows"]) - {None}) > 1]
    found: list[Part] = [
        "# The slices",
        "Share of a table's lookups whose id is in no slice before.",
        *_by_slice("Unseen ids by slice", results, dates[1:], names, of(tables, "unseen")),
    ]
    if growing:
        found += [
            "Rows of the tables that grow, once a slice has been trained on.",
            *_by_slice("Rows of tables", results, dates, growing, of(tables, "rows")),
        ]
    return [
        *found,
        "Population stability index of every feature against the warm-up, over ten bins and one for ids that it "
        "lacks. By a rule of thumb a feature is stable below 0.1, and has changed much above 0.25.",
        *_by_slice("Drift of features", results, scored, list(drift), of(drift)),
    ]


def _cost(results: Results) -> list[Part]:
    rows = []
    for model in dict.fromkeys(line["model"] for line in results["costs"]):
        for policy in (None, *results["policies"]):
            of = [line for line in results["costs"] if (line["model"], line["policy"]) == (model, policy)]
            sums = [sum(line[key] for line in of) / results["seeds"] for key in ("rows", "cpu_seconds", "seconds")]
            rows.append([model, policy or "warm-up, common to all", *(f"{value:,.0f}" for value in sums)])
    return [
        "# Cost",
        "Of all trainings of a seed; CPU seconds include measuring the slice that follows, and start anew where a "
        "training was interrupted.",
        Grid(["model", "policy", "rows trained on", "CPU seconds", "seconds"], rows),
    ]


def _made_with(results: Results) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"{results['hardware']}; {versions}."
