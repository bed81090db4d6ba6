"""A profile as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import plotly.graph_objects as go

from torchrec_xd.prepare.profile.features import PERCENTILES
from torchrec_xd.prepare.profile.findings import LARGE_PSI, LEAK_AUC
from torchrec_xd.prepare.profile.result import FeatureProfile, LabelCount, Profile
from torchrec_xd.reports.page import Folded, Grid, Part, number_text, save_page

SHOWN = 40
"""Bars of a figure, and rows of a table that others follow only folded."""
COLOURS = ("#3b82c4", "#d08a1d", "#3d9a63", "#b0589c", "#c4574f", "#7a7fd0")
"""Readable on white and on black."""
STYLE = """
 :root { color-scheme: light dark; }
 body { color: light-dark(#1c2733, #dde4ec); background: light-dark(#fff, #14181d); }
 th { background: light-dark(#f5f7fa, #222932); } th, td { border-color: light-dark(#e3e8ee, #343d48); }
 summary { cursor: pointer; margin: .5rem 0; } :focus-visible { outline: 2px solid #3b82c4; }
 .js-plotly-plot text { fill: light-dark(#1c2733, #dde4ec) !important; }
"""
NO_NUMBERS = (None,) * len(PERCENTILES)
WORDS = {"error": "Wrong", "warning": "Look", "note": "Note"}
"""Of severities."""


def save_profile_page(profile: Profile, path: Path) -> None:
    """Write the page."""
    parts: list[Part] = [
        *_findings(profile),
        "# Rows and labels",
        _label_grid(profile.labels),
        *_days(profile),
        *_features(profile),
        *_drift(profile),
        *_overlap(profile),
        *_separations(profile),
        *_duplicates(profile),
        *_activity(profile),
    ]
    save_page(path, f"Profile of {profile.name}", parts, STYLE)


def _findings(profile: Profile) -> list[Part]:
    sampled = {key: (rows, seen) for key, (rows, seen) in profile.sampled.items() if seen < rows}
    parts: list[Part] = ["# Findings"]
    parts += [f"{WORDS[each.severity]}: {each.text}. Remedy: {each.remedy}." for each in profile.findings]
    if not profile.findings:
        parts.append("None: nothing here looks wrong.")
    rows = ", ".join(f"{seen:,} of {rows:,} rows of {key}" for key, (rows, seen) in sampled.items())
    parts.append(
        f"Rows, labels, days, users and distinct ids of training are exact. All else is of a sample: {rows}."
        if sampled
        else "All numbers are of all rows."
    )
    return parts


def _label_grid(counts: Iterable[LabelCount]) -> Grid:
    rows = [
        [
            *(each.domain, each.split, each.label, *([str(each.day)] if each.day else [])),
            *(number_text(each.rows), number_text(each.labelled), number_text(each.positives)),
            *(_percent(each.rate), _percent(each.weighted_rate)),
        ]
        for each in counts
    ]
    day = ["day"] if any(each.day for each in counts) else []
    return Grid(
        ["domain", "split", "label", *day, "rows", "with label", "positives", "label rate", "label rate, weighted"],
        rows,
    )


def _days(profile: Profile) -> list[Part]:
    if not profile.days:
        return ["# By day", "The files have no column 'time' with a date or a moment in it."]
    parts: list[Part] = [
        "# By day",
        "In UTC. A fall in the last days may be labels that were not known yet.",
    ]
    for domain in dict.fromkeys(each.domain for each in profile.days):
        own = [each for each in profile.days if each.domain == domain]
        parts += [_rate_figure(domain, own), _rows_figure(domain, own), Folded(f"{domain} by day", _label_grid(own))]
    return parts


def _series(counts: Sequence[LabelCount]) -> dict[tuple[str, str], list[LabelCount]]:
    found: dict[tuple[str, str], list[LabelCount]] = {}
    for each in counts:
        found.setdefault((each.label, each.split), []).append(each)
    return found


def _rate_figure(domain: str, counts: Sequence[LabelCount]) -> go.Figure:
    figure = go.Figure()
    for i, ((label, split), own) in enumerate(_series(counts).items()):
        figure.add_scatter(
            x=[each.day for each in own],
            y=[each.rate for each in own],
            name=f"{label}, {split}",
            mode="lines+markers",
            line_color=COLOURS[i % len(COLOURS)],
        )
    figure.update_yaxes(rangemode="tozero", tickformat=".1%")
    return _laid_out(figure, f"{domain}: label rate")


def _rows_figure(domain: str, counts: Sequence[LabelCount]) -> go.Figure:
    figure = go.Figure()
    label = counts[0].label
    for i, ((_, split), own) in enumerate(_series([each for each in counts if each.label == label]).items()):
        days, rows = [each.day for each in own], [each.rows for each in own]
        figure.add_bar(x=days, y=rows, name=split, marker_color=COLOURS[i % len(COLOURS)])
    figure.update_layout(barmode="stack")
    return _laid_out(figure, f"{domain}: rows")


def _features(profile: Profile) -> list[Part]:
    parts: list[Part] = [
        "# Features",
        "Distinct: different values, of ids in training in all rows, else in the sample. Empty: null, or a list of no "
        "ids. Row 0: ids that are 0, which in a prepared data set stands for null and for what training did not see. "
        "Unseen: ids that occur in no training row. The other columns: of numbers the value, of vectors the Euclidean "
        "length, of lists the number of ids.",
    ]
    for domain, features in groupby(profile.features, lambda each: each.domain):
        own = list(features)
        order = list(dict.fromkeys(each.column for each in own))
        own.sort(key=lambda each: order.index(each.column))
        header = ["feature", "kind", "split", "distinct", "empty", "row 0", "unseen"]
        header += ["mean", "std", "min", "1%", "median", "99%", "max"]
        parts += [f"{domain}:", Grid(header, [_feature_row(each) for each in own])]
    return parts


def _feature_row(each: FeatureProfile) -> list[str]:
    numbers: list[float | None] = [each.mean, each.std, *(each.percentiles or NO_NUMBERS)]
    return [
        *(each.column, each.kind, each.split, number_text(each.distinct)),
        *(_percent(each.missing), _percent(each.row_0), _percent(each.unseen)),
        *(number_text(None if value is None else float(value), ".4g") for value in numbers),
    ]


def _drift(profile: Profile) -> list[Part]:
    if not profile.drift:
        return []
    grid = Grid(
        ["feature", "domain", "split", "PSI", "by chance"],
        [[each.column, each.domain, each.split, f"{each.psi:.3f}", f"{each.noise:.3f}"] for each in profile.drift],
    )
    shown = profile.drift[:SHOWN]
    names = [f"{each.column}, {each.domain}, {each.split}" for each in shown]
    figure = _bars(names, [each.psi for each in shown], LARGE_PSI)
    return [
        "# Drift from training",
        "Population stability index (PSI) between the values in training and in another split: below 0.1 little, from "
        "0.1 some, from 0.25 (the line) a large change. By chance: what so few rows show without a change. Up to "
        "50 values are compared one by one, more by 20 ranges of equal share in training. Row 0 does not count where "
        "training has next to none of it.",
        figure,
        Folded("PSI of all features", grid),
    ]


def _overlap(profile: Profile) -> list[Part]:
    if not profile.users:
        return ["# What domains share", "There is no source or no target domain."]
    users = [
        [
            *(each.source, each.target, each.split, number_text(each.source_users), number_text(each.users)),
            *(number_text(each.shared_users), _percent(_share(each.shared_users, each.users))),
            _percent(_share(each.shared_rows, each.rows)),
        ]
        for each in profile.users
    ]
    tables = [
        [
            *(each.table, each.source, each.target, number_text(each.source_ids), number_text(each.target_ids)),
            *(number_text(each.shared_ids), _percent(_share(each.shared_ids, each.target_ids))),
            *(_percent(_share(each.shared_lookups, each.lookups)), "yes" if each.sampled else "no"),
        ]
        for each in profile.tables
    ]
    return [
        "# What domains share",
        "What is learnt of a user in a source is of use in a target where the user has training rows in the source.",
        Grid(
            [
                *("source", "target", "split", "users of the source", "users of the split", "shared users"),
                *("share of the split's users", "share of its rows"),
            ],
            users,
        ),
        "Ids in the training rows of both domains, by table that both look up; row 0 is left out. Shares of samples "
        "are lower than the true ones.",
        Grid(
            [
                *("table", "source", "target", "ids of the source", "ids of the target", "shared ids"),
                *("share of the target's ids", "share of its lookups", "sample"),
            ],
            tables,
        ),
    ]


def _separations(profile: Profile) -> list[Part]:
    grid = Grid(
        ["feature", "domain", "label", "AUC", "known in positives", "known in negatives"],
        [
            [
                *(each.column, each.domain, each.label, number_text(each.auc, ".4f")),
                _percent(_share(each.known_positives, each.positives)),
                _percent(_share(each.known_negatives, each.negatives)),
            ]
            for each in profile.separations
        ],
    )
    shown = [each for each in profile.separations if each.auc is not None][:SHOWN]
    names = [f"{each.column}, {each.domain}, {each.label}" for each in shown]
    return [
        "# What one feature alone knows of a label",
        "AUC on training rows: of a number by its value, in the better direction; of ids by their label rate in the "
        f"other half of the rows. Above {LEAK_AUC} (the line) a feature likely knows the label. Known: not null, not "
        "empty, not only row 0.",
        *([_bars(names, [each.auc or 0.0 for each in shown], LEAK_AUC)] if shown else []),
        Folded("AUC of all features", grid),
    ]


def _duplicates(profile: Profile) -> list[Part]:
    rows = [
        [
            *(each.domain, each.split, number_text(each.rows), number_text(each.duplicates)),
            *(_percent(_share(each.duplicates, each.rows)), number_text(each.in_training)),
        ]
        for each in profile.duplicates
    ]
    timed = all(each.timed for each in profile.duplicates)
    text = "Rows that are equal in user, time and all features of kind id."
    text += "" if timed else " Where files have no column 'time', the same may well have been shown more than once."
    header = ["domain", "split", "rows looked at", "repeated", "share", "in training too"]
    for row, each in zip(rows, profile.duplicates, strict=True):
        row[-1] = "–" if each.split == "train" else row[-1]
    return ["# Duplicates", text, Grid(header, rows)]


def _activity(profile: Profile) -> list[Part]:
    parts: list[Part] = [
        "# Label rate by activity of the user",
        "Activity: the user's training rows in the same domain. Where rates differ, look at metrics by activity too.",
    ]
    for domain, counts in groupby(profile.activity, lambda each: each.domain):
        own = list(counts)
        figure = go.Figure()
        series = dict.fromkeys((each.label, each.split) for each in own)
        for i, key in enumerate(series):
            line = [each for each in own if (each.label, each.split) == key]
            groups = [_group(each.low, each.high) for each in line]
            rates = [each.rate for each in line]
            figure.add_bar(x=groups, y=rates, name=", ".join(key), marker_color=COLOURS[i % len(COLOURS)])
        order = [_group(low, high) for low, high in sorted({(each.low, each.high) for each in own}, key=lambda g: g[0])]
        figure.update_xaxes(type="category", title="training rows", categoryorder="array", categoryarray=order)
        figure.update_yaxes(tickformat=".1%")
        grid = Grid(
            ["label", "split", "training rows", "rows", "positives", "label rate"],
            [
                [
                    *(each.label, each.split, _group(each.low, each.high)),
                    *(number_text(each.rows), number_text(each.positives), _percent(each.rate)),
                ]
                for each in own
            ],
        )
        parts += [_laid_out(figure, f"{domain}: label rate"), Folded(f"{domain} by activity", grid)]
    return parts


def _bars(names: Sequence[str], values: Sequence[float], line: float) -> go.Figure:
    """Horizontal bars, the first on top, with a line across."""
    figure = go.Figure(go.Bar(x=values, y=names, orientation="h", marker_color=COLOURS[0], name=""))
    figure.add_vline(x=line, line={"dash": "dash", "color": "#808080"})
    figure = _laid_out(figure, "")
    figure.update_yaxes(autorange="reversed", automargin=True, type="category", dtick=1)
    figure.update_layout(height=90 + 18 * len(names), showlegend=False)
    return figure


def _laid_out(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(
        template="none",
        height=280,
        hovermode="closest",
        margin={"t": 30, "b": 50, "l": 70, "r": 20},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False, title=title)
    return figure


def _group(low: int, high: int | None) -> str:
    return f"≥ {low}" if high is None else str(low) if low == high else f"{low}–{high}"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None) -> str:
    return number_text(value, ".2%")
