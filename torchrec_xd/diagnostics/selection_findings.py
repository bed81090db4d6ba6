"""EXIT's faults by name: from what `Selection` measured to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchrec_xd.diagnostics.distribution import text
from torchrec_xd.diagnostics.finding import Finding

FEWEST = 0.001
"""Share of rows with an interest in a source below which its networks have next to nothing to learn from."""
EXTRA = 0.1
"""Share of the combination label's sum below which sources add next to nothing to it."""
CLOSED = 0.1
"""Mean P_tr over the share that fits, below which the selector lets next to nothing through."""
CONSTANT = 0.01
"""Standard deviation of P_tr over rows below which it is one number."""
REMEMBERED = 0.05
"""AUC on training rows less that on others from which on it counts, if it is above `ERRORS` standard errors too."""
ERRORS = 2.0
LEAST = 0.0005
"""Change of AUC below which nothing is said to hurt, whatever the verdict: what `export` lets narrower tables cost."""
NAMED = 5
"""Values of scenes that are named, those with the largest loss first."""

PROPER = "model.transfer_on: transfer with model.transfer_error: cross_entropy, and model.transfer_weight: 1"


def all_findings(values: Mapping[str, Any]) -> list[Finding]:
    """The labels first, as all else rests on them; then the selector, then the prediction."""
    return [*_labels(values), *_selector(values), *_prediction(values)]


def _labels(values: Mapping[str, Any]) -> Iterator[Finding]:
    remedy = (
        "look at the labels: do ids of users and items mean the same in all domains, is labels.window long enough, do "
        "the domains share items at all; if they do not, EXIT has no premise here: take a shared bottom, STAR or MKT"
    )
    if not values["rows"]:
        return
    for name, source in values["sources"].items():
        if source["wanted_share"] < FEWEST:
            yield Finding(
                "premise_fails",
                f"{source['wanted']:,} of {values['rows']:,} rows ({source['wanted_share']:.2%}) are wanted in '{name}'"
                f", less than {FEWEST:.1%}: the network of this interest has next to nothing to learn from",
                remedy,
            )
    share = values["extra_share"]
    if share is not None and share < EXTRA:
        yield Finding(
            "premise_fails",
            f"interests that fit are {share:.1%} of the sum of the interest combination label, less than {EXTRA:.0%}: "
            "what is to be transferred is next to nothing against what the target tower learns by itself",
            remedy,
        )


def _selector(values: Mapping[str, Any]) -> Iterator[Finding]:
    for name, source in values["sources"].items():
        fit_share, mean, std = source["fit_share"], source["mean"], source["std"]
        if fit_share and mean < CLOSED * fit_share:
            yield Finding(
                "transfer_collapsed",
                f"mean P_tr from '{name}' is {mean:.4f} on rows wanted there, where {fit_share:.4f} fits: less than a "
                "tenth of what should pass does. An absolute error is least at the median, which is 0 where fewer than "
                "half of like rows have a fitting interest",
                PROPER,
            )
        elif source["learned"] and std is not None and std < CONSTANT:
            yield Finding(
                "transfer_collapsed",
                f"P_tr from '{name}' has a standard deviation of {std:.4f} over all rows, less than {CONSTANT}: the "
                "selector says the same of every row and every scene",
                f"{PROPER}; scenes that tell what fits apart; if nothing does, model.ssn: false does as well",
            )
        here, training = source["here"], source["training"]
        if here is None or training is None:
            continue
        lost, error = training["auc"] - here["auc"], (training["error"] ** 2 + here["error"] ** 2) ** 0.5
        if lost > max(REMEMBERED, ERRORS * error):
            yield Finding(
                "selector_remembers",
                f"P_tr from '{name}' has AUC {training['auc']:.3f} for what fits on training rows and "
                f"{here['auc']:.3f} on these, {lost:.3f} less; {REMEMBERED} (and {ERRORS:g} standard errors, "
                f"{ERRORS * error:.3f}) is more than the whole selector adds on planted homepages (.025)",
                "fewer epochs, dropout, narrower model.scene_widths, or leave out scenes with many values (without)",
            )


def _prediction(values: Mapping[str, Any]) -> Iterator[Finding]:
    whole = values["whole"]
    wanted = [(f"on rows wanted in '{name}' ", source["gain"]) for name, source in values["sources"].items()]
    for where, line in [("", whole), *wanted]:
        if _hurts(line):
            yield Finding(
                "transfer_hurts",
                f"{where}{_differs(line)}: what sources add ranks worse than nothing",
                f"{PROPER}; source rows (model.sources.NAME.own); else serve P_t, the score that ends in /target",
            )
    if whole["verdict"] == "can't tell":
        yield Finding(
            "not_told_apart_from_target_alone",
            f"{_differs(whole)}: 0 cannot be ruled out at 95 %",
            "more batches (--batches), to see smaller differences; compare with a model of the target alone",
        )
    elif whole["verdict"] in ("better", "worse") and abs(whole["delta"]) < LEAST:
        yield Finding(
            "not_told_apart_from_target_alone",
            f"{_differs(whole)}: a difference, but below {LEAST}, which nobody would notice",
            "compare with a model of the target alone, which may do as well with less",
        )
    hurt = sorted(filter(_hurts, values["scenes"]), key=lambda line: float(line["delta"]))
    if hurt:
        named = "; ".join(
            f"{line['scene']} {line['value']} by {-line['delta']:.4f} ({_interval(line)}, {line['rows']:,} rows)"
            for line in hurt[:NAMED]
        )
        more = f"; and {len(hurt) - NAMED} more" if len(hurt) > NAMED else ""
        yield Finding(
            "transfer_hurts_in_scene",
            f"in {len(hurt)} of {len(values['scenes'])} values of scenes the AUC of P is below that of P_t by verdict "
            f"(5 %, by Holm over those with both classes) and by {LEAST} or more: {named}{more}",
            f"look at P_tr there (transfer_by_scene); {PROPER}; model.scene_to_towers: true",
        )


def _hurts(line: Mapping[str, Any]) -> bool:
    return line["verdict"] == "worse" and float(line["delta"]) <= -LEAST


def _differs(line: Mapping[str, Any]) -> str:
    return (
        f"the AUC of P differs by {text(line['delta'], '+.4f')} from that of P_t, the model's own target tower "
        f"({_interval(line)}, {line['users']:,} users)"
    )


def _interval(line: Mapping[str, Any]) -> str:
    return f"95 % from {text(line['low'], '+.4f')} to {text(line['high'], '+.4f')}"
