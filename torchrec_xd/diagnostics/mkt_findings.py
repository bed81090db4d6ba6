"""MKT's faults by name: from what its diagnostics measured to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchrec_xd.diagnostics.finding import Finding

ALIKE = 0.5
"""Mean cosine of common and independent knowledge from which on they are not separated: half-rectified vectors of
random numbers, which know nothing of one another, have 1 / pi = .32."""
SPLIT = 0.9
"""Share of the independent knowledge's variance that a linear map of the common one has, from which on the two hold
the same; .4 to .55 on planted worlds, where both read the same user."""
IDLE = 0.1
"""A feature carries nothing if it is worth less than this share of the most useful one, two standard errors added."""
TURNED_UP = 0.1
"""Score above that of the useful features from which on it counts: first scores of features lie as far apart."""
SHUT = 0.05
"""Share of the last vector that comes through the gate below which the gate is shut."""
BELOW = 0.005
"""Difference of a validation score from which on it counts: seeds alone make .002 to .004 on planted worlds."""
ERRORS = 2.0


def separation(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Of `KnowledgeCosines`: common and independent knowledge that are the same."""
    for domain, spread in values["domains"].items():
        mean, explained = spread["mean"], values["explained"][domain]
        if mean is None or not values["asked"]:
            continue
        if abs(mean) > ALIKE:
            yield Finding(
                "knowledge_not_separated",
                f"{domain}: the mean cosine of common and independent knowledge is {mean:.2f}, beyond {ALIKE}: vectors "
                "of random numbers behind a ReLU, which have nothing in common, have .32. The polarized distribution "
                "loss is on, and too weak",
                "a larger model.gamma; more epochs; model.pdl: squared or absolute with "
                "model.knowledge_activation: linear",
            )
        elif explained is not None and explained > SPLIT:
            yield Finding(
                "width_merely_split",
                f"{domain}: the mean cosine of common and independent knowledge is {mean:.2f}, and yet a linear map of "
                f"the common one has {explained:.0%} of the variance of the independent one, more than {SPLIT:.0%} "
                "(planted worlds: 40 to 55 %): both know the same, in different units of one width",
                "model.knowledge_activation: linear with model.pdl: squared, so that a ReLU's units cannot be shared "
                "out; narrower model.expert_widths; if the domain's own features carry nothing, nothing is left to "
                "separate (feature_worth): model.gamma: 0",
            )


def noise_turned_up(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Of `FeatureWorth`: features that HFA scores higher than useful ones, and that carry nothing."""
    for domain, content in values["domains"].items():
        features = content["features"]
        most = max(features, key=lambda feature: float(feature["worth"]))
        if most["worth"] <= ERRORS * most["error"]:
            continue  # nothing is of any use, or too few rows to see it
        useful = [f for f in features if f["worth"] > max(IDLE * most["worth"], ERRORS * f["error"])]
        usual = sum(feature["score"] for feature in useful) / len(useful)
        loud = [
            f
            for f in features
            if f["worth"] + ERRORS * f["error"] < IDLE * most["worth"] and f["score"] > max(1.0, usual) + TURNED_UP
        ]
        if loud:
            named = ", ".join(f"{f['feature']} (score {f['score']:.2f}, worth {f['worth']:.5f})" for f in loud)
            yield Finding(
                "noise_turned_up",
                f"{domain}: HFA turns up {named}, above 1 and by more than {TURNED_UP} above the mean score of useful "
                f"features, {usual:.2f}; each is worth less than a tenth of {most['feature']} ({most['worth']:.5f} "
                "nats a row), two standard errors added",
                "leave them out (without); else model.hfa: false, model.dropout, or a lower optimizer.tables.lr, if "
                "their ids are remembered",
            )


def gating(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Of `GateOpenness`: a second stage that does not get what the first one knows."""
    stages, last = values["stages"], values["gates"].get("gates.common")
    if stages is None:
        return
    first, second, monitor = stages["stage_1"], stages["stage_2"], stages["monitor"]
    if first - second <= BELOW:
        return
    against = f"{monitor} on validation is {second:.4f}, that of stage 1 {first:.4f}"
    why = f"more than {BELOW} apart (seeds alone make .002 to .004 on planted worlds)"
    if last is not None and last["share"] is not None and last["share"] < SHUT:
        yield Finding(
            "gating_failure",
            f"{last['share']:.1%} of the last vector come through the gate of common knowledge (less than {SHUT:.0%}; "
            f"mean openness {last['mean']:.3f}), though the teacher knows more than is served: {against}, {why}",
            "model.gate_bias: 3, so that gates begin open; model.gates: dynamic; a smaller loader.batch_size or more "
            "epochs, for more steps; model.warm_start: true",
        )
    yield Finding(
        "stage_2_below_stage_1",
        f"{against}, {why}: the second stage loses what the first one has",
        "a smaller loader.batch_size (256) or more epochs: stage 2 sees the target's rows alone, and may take few "
        "steps; model.knowledge: common_and_independent, model.warm_start: true; else serve stage 1",
    )
