"""What a recipe says about its features, without an engine: which a domain has, and how values become ids."""

from __future__ import annotations

from torchrec_xd.prepare.encoders import Encoders
from torchrec_xd.prepare.recipe import Recipe, RecipeFeature


def features_of(recipe: Recipe, domain: str) -> list[RecipeFeature]:
    """The features that rows of a domain have."""
    return [feature for feature in recipe.features if feature.domains is None or domain in feature.domains]


def is_read(feature: RecipeFeature) -> bool:
    """Whether a feature is made of a value in the domain's rows."""
    return feature.history is None and feature.total is None and feature.calendar is None


def table_of(feature: RecipeFeature) -> str:
    """Name of the table that a feature looks up."""
    return feature.table or feature.column


def way_of(feature: RecipeFeature) -> str:
    """How values become ids: the key that the feature gives; `vocabulary` by default."""
    ways = ("vocabulary", "buckets", "quantiles", "log_buckets", "hash", "as_is")
    given = [way for way in ways if getattr(feature, way) is not None]
    return given[0] if given else "calendar" if feature.calendar else "vocabulary"


def log_edges(top: int) -> tuple[float, ...]:
    """Edges 1, 2, 3, 4, 6, 8, 12, … up to `top`: two for each doubling."""
    edges = [1.0, 2.0]
    while edges[-1] < top:
        edges += [edges[-1] * 3 // 2, edges[-1] * 2]
    return tuple(edge for edge in edges if edge <= top)


def edges_of(feature: RecipeFeature, encoders: Encoders) -> tuple[float, ...] | None:
    """Edges of a feature's buckets; None where it has none."""
    if feature.quantiles is not None:
        return encoders.numbers[feature.column].edges
    return log_edges(feature.log_buckets) if feature.log_buckets else feature.buckets
