"""Raw rows of one domain, without labels, to rows that a trained model scores, by what was learnt before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlglot

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.encoders import RECIPE, encoders_folder, load_encoders
from torchrec_xd.prepare.engine import connect, count_rows, engine_errors
from torchrec_xd.prepare.engine_settings import EngineSettings
from torchrec_xd.prepare.execution import Preparation, Stages
from torchrec_xd.prepare.features import features_of, is_read, way_of
from torchrec_xd.prepare.input_errors import input_errors
from torchrec_xd.prepare.inputs import open_inputs
from torchrec_xd.prepare.recipe import Input, Recipe
from torchrec_xd.prepare.recipe_file import RecipeFile, choices, load_recipe
from torchrec_xd.prepare.rows import RAW_ROW
from torchrec_xd.prepare.tables import Tables

RAW = "_raw"
"""Name of the input of raw rows."""
NUMBERED = "_raw_rows"
"""The same rows with their number: joins of views may change their order."""


@dataclass(frozen=True)
class EncodedRows:
    """What became of raw rows."""

    path: Path
    """A Parquet file in the order of the raw rows."""
    rows: int
    """How many these are."""
    left_out: int
    """Raw rows that are not in it: conditions and joins of views leave them out."""
    kept: Mapping[str, str]
    """Column of it that holds raw values -> the name of that column in the raw rows."""
    unseen: Mapping[str, int]
    """Feature with a vocabulary -> rows whose value has no row of its own: new, rare or missing."""

    def remarks(self) -> Iterator[str]:
        """What to tell the user."""
        if self.left_out:
            yield (
                f"{self.left_out:,} of {self.rows + self.left_out:,} raw rows have no prediction: a condition or "
                "join in the recipe's views leaves them out"
            )
        for name, unseen in self.unseen.items():
            if unseen:
                yield (
                    f"{name}: {unseen:,} of {self.rows:,} values have no row of their own (new, rare or missing), and "
                    "use row 0"
                )


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
        UserError: no such domain, a column that features need is missing, files of lookups or events are gone, or a
            join makes several rows of one.
    """
    folder = encoders_folder(encoders)
    learnt, file = load_encoders(folder), load_recipe(folder / RECIPE)
    if domain not in file.recipe.domains:
        raise UserError(f"--domain {domain}: the recipe's domains are: {', '.join(file.recipe.domains)}")
    unknown = [name for name in inputs if name not in file.recipe.inputs]
    if unknown:
        raise UserError(choices(unknown[0], f"an input of {file.origin}", file.recipe.inputs))
    file = replace(file, recipe=_of_raw_rows(file, domain, tuple(keep)))
    others = {name: path for name, path in inputs.items() if name in file.recipe.inputs}
    others[RAW] = raw if "://" in raw else str(Path(raw).absolute())
    run_places = Stages(place / "stages", lambda _line: None)
    with engine_errors():
        tables = Tables(connect(file.recipe.engine, spill=place / "spill"))
        try:
            found = open_inputs(tables, file, others)
        except UserError as error:
            raise UserError(f"{error}\nfiles that lie elsewhere now are named by --input NAME=PATH") from None
        with input_errors(file, found):
            Preparation(tables, file, run_places, buckets=1, labels=False).run(place / "out", (learnt, folder))
            given = count_rows(tables.connection.table(RAW))
            rows = tables.parquet(run_places.folder / "rows" / domain)
            encoded, numbers = count_rows(rows), count_rows(rows.select("_row").distinct())
    if encoded > numbers:
        raise UserError(
            f"{raw}: {given:,} raw rows became {encoded:,}: a join in the views of '{domain}' finds several rows for "
            "one; give one row for each key (--input NAME=PATH names other files for an input)"
        )
    path = place / "out" / domain / "test" / "part-00000.parquet"
    ids = [each for each in features_of(file.recipe, domain) if each.kind == "id" and way_of(each) == "vocabulary"]
    table = pq.read_table(path, columns=[each.column for each in ids])
    unseen = {name: int(pc.sum(pc.equal(table[name], 0)).as_py() or 0) for name in table.column_names}
    kept = {f"k_{name}": name for name in file.recipe.domains[domain].keep}
    return EncodedRows(path, encoded, given - encoded, kept, unseen)


def _of_raw_rows(file: RecipeFile, domain: str, keep: tuple[str, ...]) -> Recipe:
    """The recipe of one domain whose rows are those of the input `RAW`; everything else is as it was."""
    recipe = file.recipe
    own = recipe.domains[domain]
    features = tuple(features_of(recipe, domain))
    events = {made.events for each in features if (made := each.history or each.total) is not None}
    source, views = own.rows, {**recipe.views, NUMBERED: f"SELECT row_number() OVER () AS {RAW_ROW}, * FROM {RAW}"}
    rows = NUMBERED if source in recipe.inputs else f"{RAW}_{source}"
    while source in recipe.views:  # a copy of every view from the domain's down to the input that rows come from
        query, table = _first_table(recipe.views[source])
        if table is None or table.name not in {*recipe.inputs, *recipe.views}:
            raise file.fault(("views", source), "raw rows take the place of the input after FROM, and there is none")
        below = table.name
        instead = NUMBERED if below in recipe.inputs else f"{RAW}_{below}"
        table.set("this", sqlglot.exp.to_identifier(instead, quoted=True))
        if not table.alias:
            table.set("alias", sqlglot.exp.TableAlias(this=sqlglot.exp.to_identifier(below, quoted=True)))
        views[f"{RAW}_{source}"] = query.sql(dialect="duckdb")
        source = below
    used = _used([rows, *(recipe.events[name].rows for name in events)], views, recipe.inputs)
    given = {name: each for name, each in recipe.inputs.items() if name in used} | {RAW: recipe.inputs[source]}
    # in the order of use: a view comes after those that it reads
    order = [name for name in (NUMBERED, *recipe.views) for name in (name, f"{RAW}_{name}") if name in used]
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
            "activity": None,  # of no use to scores, and of events that may be gone
            "engine": recipe.engine if recipe.engine.engine == "duckdb" else EngineSettings(),
        }
    )


def _first_table(text: str) -> tuple[sqlglot.exp.Expression, sqlglot.exp.Table | None]:
    """A view with the number of raw rows carried through, and the table that its rows come from: the first after FROM.

    Of a UNION the first part is left: the others hold rows that are not to be scored.
    """
    query: sqlglot.exp.Expression = sqlglot.parse_one(text, read="duckdb")
    named = {cte.alias: cte.this for cte in query.find_all(sqlglot.exp.CTE)}
    node = query
    while not isinstance(node, sqlglot.exp.Table):
        if isinstance(node, sqlglot.exp.SetOperation):
            first = node.this.unnest()
            if node.args.get("with_"):
                first.set("with_", node.args["with_"])
            query = first if node is query else query
            node.replace(first)
            node = first
        elif isinstance(node, sqlglot.exp.Subquery):
            node = node.this
        else:
            start = node.find(sqlglot.exp.From)
            if start is None or not isinstance(node, sqlglot.exp.Select):
                return query, None
            below = start.this
            _carry_number(node, below.alias_or_name)
            node = named.pop(below.name, below) if isinstance(below, sqlglot.exp.Table) else below
    return query, node


def _carry_number(select: sqlglot.exp.Select, alias: str) -> None:
    """Add the number of raw rows, which the table `alias` has, to a SELECT that does not take all of its columns."""
    for each in select.selects:
        table = each.table if isinstance(each, sqlglot.exp.Column) else ""
        if each.is_star and table in ("", alias):
            return
    number: sqlglot.exp.Expression = sqlglot.exp.column(RAW_ROW, table=alias or None)
    if select.args.get("group"):
        number = sqlglot.exp.Min(this=number)
    select.append("expressions", sqlglot.exp.alias_(number, RAW_ROW))


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
            todo += [table for table in tables if table in views or table in inputs]
    return found
