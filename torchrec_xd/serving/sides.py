"""Which features belong to a request, once, and which to each of its candidates."""

from __future__ import annotations

from typing import Literal

from torchrec_xd.feature import Feature

Side = Literal["request", "candidate"]


def side(feature: Feature) -> Side:
    """`request` for what the user and the moment have (user, context, scene, sequence), else `candidate`."""
    return "candidate" if feature.group in ("shared", "specific") else "request"
