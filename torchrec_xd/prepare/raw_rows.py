"""Raw rows of one domain, without labels, to rows that a trained model scores, by what was learnt before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlglot

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import RECIPE, encoders_folder, load_encoders
from torchrec_xd.prepare.engine import connect, engine_errors
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.execution import Preparation, Stages
from torchrec_xd.prepare.features import features_of, is_read, way_of
from torchrec_xd.prepare.input_errors import input_errors
from torchrec_xd.prepare.inputs import open_inputs
from torchrec_xd.prepare.recipe import Input, Recipe
from torchrec_xd.prepare.recipe_file import RecipeFile, load_recipe
from torchrec_xd.prepare.tables import Tables

RAW = "_raw"
"""Name of the table of raw rows."""


@dataclass(frozen=True)
class EncodedRows:
    """What became of raw rows."""

    path: Path
    """A Parquet file in the order of the raw rows."""
    kept: Mapping[str, str]
    """Column of it that holds raw values -> the name of that column in the raw rows."""
    unseen: Mapping[str, int]
    """Feature with a vocabulary -> rows whose value has no row of its own: new, rare or missing."""


def encode_raw_rows(
    encoders: Path, raw: str, domain: str, place: Path, *, inputs: Mapping[str, str], keep: Sequence[str] = ()
) -> EncodedRows:
    """Encode raw rows of a domain; histories and totals are of the events that the recipe names.

    Args:
        encoders: folder of encoders, with their recipe.
        raw: file, folder or glob in a format that recipes read.
        domain: of the rows.
        place: a folder that exists, for the result.
        inputs: input of the recipe to the files that are read instead, for lookups and events.
        keep: columns of the raw rows that pass through, besides time and ids.

    Raises:
        UserError: no such domain, a column that features need is missing, or files of lookups or events are gone.
    """
    folder = encoders_folder(encoders)
    learnt, file = load_encoders(folder), load_recipe(folder / RECIPE)
    if domain not in file.recipe.domains:
        raise UserError(f"--domain {domain}: the recipe's domains are: {', '.join(file.recipe.domains)}")
    file = replace(file, recipe=_of_raw_rows(file, domain, raw, tuple(keep), inputs))
    run_places = Stages(place / "stages", lambda _line: None)
    with engine_errors():
        tables = Tables(connect(file.recipe.engine, spill=place / "spill"))
        try:
            found = open_inputs(tables, file, {})
        except UserError as error:
            raise UserError(f"{error}\nfiles that lie elsewhere now are named by --input NAME=PATH") from None
        with input_errors(file, found):
            Preparation(tables, file, run_places, buckets=1, labels=False).run(place / "out", (learnt, folder))
    path = place / "out" / domain / "test" / "part-00000.parquet"
    ids = [each for each in features_of(file.recipe, domain) if each.kind == "id" and way_of(each) == "vocabulary"]
    table = pq.read_table(path, columns=[each.column for each in ids])
    unseen = {name: int(pc.sum(pc.equal(table[name], 0)).as_py() or 0) for name in table.column_names}
    return EncodedRows(path, {f"k_{name}": name for name in file.recipe.domains[domain].keep}, unseen)


def _of_raw_rows(file: RecipeFile, domain: str, raw: str, keep: tuple[str, ...], inputs: Mapping[str, str]) -> Recipe:
    """The recipe of one domain whose rows are read from `raw`; everything else is as it was."""
    recipe = file.recipe
    own = recipe.domains[domain]
    features = tuple(features_of(recipe, domain))
    events = {made.events for each in features if (made := each.history or each.total) is not None}
    source, views = own.rows, dict(recipe.views)
    rows = RAW if source in recipe.inputs else f"{RAW}_{source}"
    while source in recipe.views:  # a copy of every view from the domain's down to the input that rows come from
        query = sqlglot.parse_one(recipe.views[source], read="duckdb")
        first = query.find(sqlglot.exp.From)
        table = None if first is None else first.find(sqlglot.exp.Table)
        if table is None or table.name not in {*recipe.inputs, *recipe.views}:
            raise file.fault(("views", source), "raw rows take the place of the input after FROM, and there is none")
        below = table.name
        table.set("this", sqlglot.exp.to_identifier(RAW if below in recipe.inputs else f"{RAW}_{below}", quoted=True))
        if not table.alias:
            table.set("alias", sqlglot.exp.TableAlias(this=sqlglot.exp.to_identifier(below, quoted=True)))
        views[f"{RAW}_{source}"] = query.sql(dialect="duckdb")
        source = below
    used = _used([rows, *(recipe.events[name].rows for name in events)], views, recipe.inputs)
    given = {name: _replaced(each, inputs.get(name)) for name, each in recipe.inputs.items() if name in used}
    given[RAW] = _replaced(recipe.inputs[source], str(Path(raw).absolute()) if "://" not in raw else raw)
    # in the order of use: a view comes after those that it reads
    order = [name for name in views if name in used]
    order.sort(key=lambda name: list(recipe.views).index(name.removeprefix(f"{RAW}_")))
    plain = [each.column for each in features if each.kind == "id" and is_read(each) and each.value is None]
    passed = [own.time, *(name for name in plain if name != own.user), *own.keep, *keep]
    return recipe.model_copy(
        update={
            "inputs": given,
            "views": {name: views[name] for name in order},
            "domains": {
                domain: own.model_copy(update={"rows": rows, "keep": tuple(dict.fromkeys(filter(None, passed)))})
            },
            "events": {name: each for name, each in recipe.events.items() if name in events},
            "features": features,
            "engine": recipe.engine if recipe.engine.engine == "duckdb" else EngineSettings(),
        }
    )


def _used(names: Sequence[str], views: Mapping[str, str], inputs: Mapping[str, Input]) -> set[str]:
    """The tables that some tables are made of, themselves included."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            query = sqlglot.parse_one(views[name], read="duckdb") if name in views else None
            tables = [] if query is None else [table.name for table in query.find_all(sqlglot.exp.Table)]
            todo += [table for table in tables if table in views or table in inputs or table == RAW]
    return found


def _replaced(given: Input, path: str | None) -> Input:
    return given if path is None else given.model_copy(update={"path": path, "format": None, "version": None})
