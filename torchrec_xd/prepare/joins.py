"""Joins in views that would multiply rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlglot
from ibis import _
from sqlglot import exp

from torchrec_xd.prepare.recipe_file import RecipeFile
from torchrec_xd.prepare.tables import Tables

_HARMLESS = {"SEMI", "ANTI", "CROSS", "ASOF", "POSITIONAL"}
"""Joins that match a row once, or say themselves that they multiply rows."""


@dataclass(frozen=True)
class _Join:
    """Two inputs or views, and the columns of each that are equal."""

    left: str
    left_keys: tuple[str, ...]
    right: str
    right_keys: tuple[str, ...]


def check_joins(tables: Tables, file: RecipeFile) -> None:
    """Refuse views that join tables whose keys repeat on both sides: rows would be there several times.

    Joins by equal columns of inputs and views are looked at; those below a GROUP BY or DISTINCT, and those of
    subqueries, are not.

    Raises:
        UserError: names view, table, keys and one value that repeats.
    """
    for name in file.recipe.many_to_many:
        if name not in file.recipe.views:
            raise file.unknown(("many_to_many",), name, "a view", file.recipe.views)
    for name, query in file.recipe.views.items():
        if name in file.recipe.many_to_many:
            continue
        for join in _joins(tables, file, query):
            right = _repeated(tables, join.right, join.right_keys)
            if right is None or _repeated(tables, join.left, join.left_keys) is None:
                continue
            count = right.pop("_count")
            keys, values = ", ".join(right), ", ".join(map(repr, right.values()))
            raise file.fault(
                ("views", name),
                f"the join with '{join.right}' would multiply rows: {keys} {values} is in {count:,} of its rows, and "
                f"keys repeat in '{join.left}' too; join one row for each (SELECT DISTINCT ON ({keys}) * FROM "
                f"{join.right}), or, if it is meant, write many_to_many: [{name}]",
            )


def _joins(tables: Tables, file: RecipeFile, query: str) -> Iterator[_Join]:
    """The joins of inputs and views in a query."""
    known = {name.lower(): name for name in (*file.recipe.inputs, *file.recipe.views)}
    tree = sqlglot.parse_one(query, read="duckdb")
    for cte in tree.find_all(exp.CTE):
        known.pop(cte.alias.lower(), None)
    for select in tree.find_all(exp.Select):
        if select.args.get("group") or select.args.get("distinct"):
            continue
        sources: dict[str, tuple[str, list[str]]] = {}
        start = select.args.get("from_") or select.args.get("from")
        for join in [start, *(select.args.get("joins") or [])]:
            right = join.this if join is not None else None
            if not isinstance(right, exp.Table) or right.name.lower() not in known:
                continue
            name, alias = known[right.name.lower()], right.alias_or_name
            pairs = list(_pairs(join, alias, sources, columns := list(tables.connection.table(name).columns)))
            sources[alias] = (name, columns)
            lefts = {left for left, _key, _other in pairs}
            if len(lefts) == 1 and not {join.side, join.kind, join.method} & _HARMLESS:
                yield _Join(
                    sources[lefts.pop()][0],
                    tuple(key for _left, key, _other in pairs),
                    name,
                    tuple(p[2] for p in pairs),
                )


def _pairs(
    join: Any, alias: str, sources: dict[str, tuple[str, list[str]]], columns: list[str]
) -> Iterator[tuple[str, str, str]]:
    """Alias and column of the left side, and the column of the joined table that equals it."""
    if isinstance(join, exp.From):
        return
    for key in join.args.get("using") or []:
        for left, (_name, there) in sources.items():
            if key.name in there:
                yield left, key.name, key.name
                break
    on = join.args.get("on")
    for equal in on.find_all(exp.EQ) if on is not None and on.find(exp.Or) is None else ():
        sides = [side for side in (equal.this, equal.expression) if isinstance(side, exp.Column)]
        if len(sides) < 2:
            continue
        owners = [
            side.table
            or next((a for a, (_n, there) in {**sources, alias: ("", columns)}.items() if side.name in there), "")
            for side in sides
        ]
        if owners[0] == alias:
            sides, owners = sides[::-1], owners[::-1]
        if owners[1] == alias and owners[0] in sources:
            yield owners[0], sides[0].name, sides[1].name


def _repeated(tables: Tables, name: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The values of keys that are in most rows, with `_count`; None if they are in one row each."""
    rows = tables.connection.table(name)
    counts = rows.filter(*(rows[key].notnull() for key in keys)).group_by(keys).agg(_count=_.count())
    counts = counts.filter(counts._count > 1).order_by(counts._count.desc(), *keys).limit(1)
    found: list[dict[str, Any]] = counts.to_pyarrow().to_pylist()
    return found[0] if found else None
