"""The schema of a prepared data set, as training reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from torchrec_xd.prepare.assembly import rows_of
from torchrec_xd.prepare.encoders import FOLDER, Encoders
from torchrec_xd.prepare.features import table_of, way_of
from torchrec_xd.prepare.recipe import Recipe, RecipeFeature
from torchrec_xd.prepare.rows import SPLITS
from torchrec_xd.prepare.writing import is_weighted
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate

NAME = "schema.yaml"


def schema_of(recipe: Recipe, encoders: Encoders, root: str) -> dict[str, Any]:
    """The content of `schema.yaml`.

    Args:
        recipe: what was prepared.
        encoders: what was learnt.
        root: folder of the data set, as commands will be given it.
    """
    content: dict[str, Any] = {"name": recipe.name, "root": root, "user": "user"}
    content |= {"weight": "weight"} if is_weighted(recipe) else {}
    content |= {"activity": "activity"} if recipe.activity else {}
    content["dim"] = recipe.dim
    content["domains"] = {
        name: {"role": domain.role, **{split: f"{name}/{split}/*.parquet" for split in SPLITS}}
        for name, domain in recipe.domains.items()
    }
    content["tasks"] = [
        {"label": label, "domain": name, **({"nullable": True} if label in domain.nullable else {})}
        for name, domain in recipe.domains.items()
        for label in domain.labels
    ]
    content["features"] = [written for feature in recipe.features for written in _features(feature, encoders)]
    return content


def resolved(recipe: Recipe, encoders: Encoders, root: str) -> Schema:
    """The same as an object, with the number of rows of every table.

    Args:
        recipe: what was prepared.
        encoders: what was learnt.
        root: folder where the data set lies.
    """
    content = schema_of(recipe, encoders, root)
    rows = {f"{FOLDER}/{table.file}": table.rows for table in encoders.tables.values()}
    for feature in content["features"]:
        if feature.get("rows") in rows:
            feature["rows"] = rows[feature["rows"]]
    return validate(Schema, content, NAME)


def _features(feature: RecipeFeature, encoders: Encoders) -> list[dict[str, Any]]:
    written: dict[str, Any] = {"column": feature.column, "kind": feature.kind, "group": feature.group}
    if feature.domains is not None:
        written["domains"] = list(feature.domains)
    if feature.kind in ("id", "bag", "sequence"):
        if table_of(feature) != feature.column:
            written["table"] = feature.table
        way = way_of(feature)
        vocabulary = f"{FOLDER}/{encoders.tables[table_of(feature)].file}" if way == "vocabulary" else None
        written["rows"] = vocabulary or rows_of(feature, encoders)
        written |= {"hash": "xxhash"} if way == "hash" else {}
    for key in ("dim", "length"):
        if getattr(feature, key) is not None:
            written[key] = getattr(feature, key)
    if feature.kind == "bag" and feature.pooling != "sum":
        written["pooling"] = feature.pooling
    if feature.indicator and feature.kind == "vector":
        written["indicator"] = True
    if feature.indicator and feature.kind == "dense":
        missing = {key: value for key, value in written.items() if key != "column"}
        return [written, {"column": f"{feature.column}_missing", **missing}]
    return [written]


def write_schema(recipe: Recipe, encoders: Encoders, root: str, path: Path) -> None:
    """Write `schema.yaml`, a feature in each line."""
    content = schema_of(recipe, encoders, root)

    def line(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()

    lines = [f"# Made by: torchrec-xd prepare, from the recipe in {FOLDER}/recipe.yaml."]
    for key, value in content.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"  - {line(each)}" for each in value)]
        elif isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {line(each)}" for name, each in value.items())]
        else:
            lines.append(f"{key}: {line({'x': value})[4:-1]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
