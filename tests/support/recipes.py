"""Recipes that `init` wrote: read back, and every piece of SQL in them run by DuckDB and read for Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import sqlglot

from torchrec_xd.prepare.api import prepare_recipe
from torchrec_xd.prepare.atomic import atomic_columns, atomic_options, atomic_select
from torchrec_xd.prepare.init import Layout, init_recipe
from torchrec_xd.prepare.init.sql import sql_name
from torchrec_xd.prepare.recipe import Input, Recipe
from torchrec_xd.settings import load_yaml, validate


def made_recipe(out: Path, *inputs: str, layout: Layout | None = None) -> tuple[Recipe, str]:
    """The recipe that `init` writes for inputs, and its text; all SQL in it is run."""
    init_recipe(inputs, out, lambda line: None, force=True, layout=layout)
    recipe = validate(Recipe, load_yaml(out), str(out))
    run_sql(recipe)
    return recipe, out.read_text(encoding="utf-8")


def prepared(out: Path) -> dict[str, dict[str, int]]:
    """What `prepare` makes of a recipe: the rows of each split of each domain."""
    manifest = prepare_recipe(out, out.with_suffix(""), lambda line: None)
    return {name: {split: s.rows for split, s in splits.items()} for name, splits in manifest.domains.items()}


def feature(recipe: Recipe, column: str) -> dict[str, Any]:
    """What a recipe says about a feature, but for its column."""
    found = next(each for each in recipe.features if each.column == column)
    return {key: value for key, value in found.model_dump(exclude_unset=True).items() if key != "column"}


def run_sql(recipe: Recipe) -> None:
    """Read inputs and views, and compute every label, value, history and total for a few rows."""
    with duckdb.connect() as engine:
        for name, table in recipe.inputs.items():
            engine.execute(f"CREATE VIEW {sql_name(name)} AS {_read(table)}")
        for name, query in recipe.views.items():
            engine.execute(f"CREATE VIEW {sql_name(name)} AS {query}")
            sqlglot.transpile(query, read="duckdb", write="spark")
        for name, domain in recipe.domains.items():
            values = [domain.user, *([domain.time] if domain.time else []), *domain.labels.values()]
            for each in recipe.features:
                if each.calendar is None and each.history is None and each.total is None:
                    values += [each.value or sql_name(each.column)] if name in (each.domains or (name,)) else []
                if each.total is not None and name in (each.domains or (name,)):
                    values += [sql_name(key) for key in each.total.by if key != "user"]
            _select(engine, domain.rows, values)
        for each in recipe.features:
            for past in (each.history, each.total):
                if past is not None:
                    events = recipe.events[past.events]
                    values = [events.user, events.time]
                    values += [past.value] if past.value else []
                    values += [sql_name(key) for key in getattr(past, "by", ()) if key != "user"]
                    _select(engine, events.rows, values + ([past.where] if past.where else []))


def _select(engine: Any, rows: str, values: list[str]) -> None:
    query = f"SELECT {', '.join(f'({value})' for value in values)} FROM {sql_name(rows)}"
    engine.execute(query).fetchall()
    sqlglot.transpile(query, read="duckdb", write="spark")


def _read(table: Input) -> str:
    paths = [table.path] if isinstance(table.path, str) else list(table.path)
    ending = next(part for part in reversed(paths[0].split(".")) if part not in ("gz", "zst"))
    kind = table.format or {"csv": "csv", "parquet": "parquet"}.get(ending, "atomic" if ending == "inter" else ending)
    if kind in ("atomic", "inter", "user", "item"):
        options = ", ".join(f"{key} = {value!r}" for key, value in atomic_options(paths[0]).items())
        return f"SELECT {atomic_select(atomic_columns(paths[0]))} FROM read_csv({paths!r}, {options})"
    if kind == "parquet":
        return (
            f"FROM read_parquet({[p if p.endswith('.parquet') or '*' in p else p + '/**/*.parquet' for p in paths]!r})"
        )
    if kind in ("json", "jsonl"):
        return f"FROM read_json({paths!r})"
    options = f", header = {table.header}" + (f", delim = {table.separator!r}" if table.separator else "")
    options += f", types = {table.types!r}" if table.types else ""
    options += f", names = {list(table.columns)!r}" if table.columns else ""
    return f"FROM read_csv({paths!r}{options})"
