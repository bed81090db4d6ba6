"""The rows of a domain and the events of the past: raw values, moments as integers, and which split a row is in."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import ibis
import sqlglot
from ibis import _
from ibis.expr.types import BooleanValue, IntegerValue, Table, Value

from torchrec_xd.prepare.features import features_of, is_read
from torchrec_xd.prepare.hashing import hash_of, mix_of
from torchrec_xd.prepare.recipe import Recipe, RecipeDomain, TimeUnit, Total
from torchrec_xd.prepare.recipe_file import Key, RecipeFile, choices
from torchrec_xd.prepare.tables import Tables, quoted

SPLITS = ("train", "valid", "test")
RAW_ROW = "_raw_row"
"""Column of rows without labels: their number."""
HASH_RANGE = 2**31 - 1
"""Hashes lie below it."""
MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def totals_of(recipe: Recipe, domain: str | None = None) -> dict[str, tuple[Total, Key]]:
    """Column to total and its place in the recipe: those of features, of one domain or all, and `activity`."""
    found: dict[str, tuple[Total, Key]] = {}
    for i, feature in enumerate(recipe.features):
        if feature.total is not None and (domain is None or feature in features_of(recipe, domain)):
            found[feature.column] = (feature.total, ("features", i, "total"))
    return found | ({"activity": (recipe.activity, ("activity",))} if recipe.activity is not None else {})


def domain_rows(tables: Tables, file: RecipeFile, name: str, *, labels: bool = True) -> Table:
    """The rows of a domain as they are, not sampled yet.

    Without `labels`, rows have none, are in no split, and have the column `RAW_ROW`, which becomes `_row`.

    Returns:
        `_user`, `_time` (microseconds since 1970, 0 without a time), `_split` (0, 1, 2), `cold` (0 or 1), `_weight`,
        `l_LABEL` (0, 1 or null), `k_COLUMN` of columns that are kept, `b_COLUMN` of those that totals are counted by,
        and `v_FEATURE` of the values of features.

    Raises:
        UserError: a column is missing or of a type that its meaning does not allow.
    """
    domain, key = file.recipe.domains[name], ("domains", name)
    given: dict[str, tuple[str, Key]] = {"_user": (domain.user, (*key, "user"))}
    given |= {"_when": (domain.time, (*key, "time"))} if domain.time else {}
    given |= {"_weight": (domain.weight, (*key, "weight"))} if domain.weight and labels else {}
    given |= {f"l_{label}": (sql, (*key, "labels", label)) for label, sql in domain.labels.items()} if labels else {}
    given |= {f"k_{column}": (quoted(column), (*key, "keep", i)) for i, column in enumerate(domain.keep)}
    given |= {f"s_{column}": (quoted(column), (*key, "key")) for column in domain.key or ()}
    for i, feature in enumerate(file.recipe.features):
        if feature.domains is not None and name not in feature.domains:
            continue
        if is_read(feature):
            given[f"v_{feature.column}"] = (feature.value or quoted(feature.column), ("features", i, "value"))
    for total, place in totals_of(file.recipe, name).values():
        given |= {f"b_{column}": (quoted(column), (*place, "by")) for column in total.by if column != "user"}
    given |= {} if labels else {"_row": (RAW_ROW, (*key, "rows"))}
    if file.recipe.split.column and labels:
        given["_part"] = (quoted(file.recipe.split.column), ("split", "column"))
    rows = select(tables, file, f"_rows_{name}", domain.rows, (*key, "rows"), given)
    _check_user(file, rows, (*key, "user"))
    for label in domain.labels if labels else ():
        rows = _label(file, rows, label, (*key, "labels", label))
    time = moment(tables, file, rows, domain.time_unit, (*key, "time")) if domain.time else ibis.literal(0, "int64")
    rows = rows.mutate(_time=time)
    if "_weight" not in given:
        rows = rows.mutate(_weight=ibis.literal(1.0, "float32"))
    if not labels:  # rows to score are in no split, and all are kept
        rows = rows.mutate(_split=ibis.literal(SPLITS.index("test"), "int8"), cold=ibis.literal(0, "int8"))
        return rows.drop(*({"_when"} & set(rows.columns)), *(c for c in rows.columns if c.startswith("s_")))
    rows = rows.mutate(_split=_split(tables, file, rows, domain), cold=_cold(tables, file.recipe, rows))
    rows = rows.filter((_._split != 0) | (_.cold == 0))
    if domain.keep_negatives < 1:
        rows = _sampled(tables, file, rows, name)
    return rows.drop(*(column for column in rows.columns if column in ("_when", "_part") or column.startswith("s_")))


def event_rows(tables: Tables, file: RecipeFile, name: str) -> Table:
    """The events of one name.

    Returns:
        `_user`, `_time`, `b_COLUMN` of the columns that totals are counted by, and of the features that are made of
        them `h_FEATURE` (value of a history), `x_FEATURE`, `p_FEATURE` (`value` and `per` of a total) and `w_FEATURE`
        (whether an event counts).
    """
    events, key = file.recipe.events[name], ("events", name)
    given: dict[str, tuple[str, Key]] = {"_user": (events.user, (*key, "user")), "_when": (events.time, (*key, "time"))}
    for i, feature in enumerate(file.recipe.features):
        made, place = feature.history, ("features", i, "history")
        if made is not None and made.events == name:
            given[f"h_{feature.column}"] = (made.value, (*place, "value"))
            given |= {f"w_{feature.column}": (made.where, (*place, "where"))} if made.where is not None else {}
    for column, (total, key_of) in totals_of(file.recipe).items():
        if total.events == name:
            given |= {f"b_{by}": (quoted(by), (*key_of, "by")) for by in total.by if by != "user"}
            parts = {"x": (total.value, "value"), "p": (total.per, "per"), "w": (total.where, "where")}
            given |= {f"{mark}_{column}": (sql, (*key_of, part)) for mark, (sql, part) in parts.items() if sql}
    rows = select(tables, file, f"_events_{name}", events.rows, (*key, "rows"), given)
    _check_user(file, rows, (*key, "user"))
    rows = rows.mutate(_time=moment(tables, file, rows, events.time_unit, (*key, "time")))
    return rows.drop("_when").filter(_._user.notnull(), _._time.notnull())


def select(
    tables: Tables, file: RecipeFile, name: str, source: str, key: Key, given: dict[str, tuple[str, Key]]
) -> Table:
    """Columns and SQL expressions of an input or view, under new names; each fault names its own line."""
    there = tables.connection.table(source).columns
    lower = {column.lower() for column in (*there, source)}
    parts: list[str] = []
    for alias, (sql, place) in given.items():
        expression = _expression(file, sql, place, there)
        own = {name.name.lower() for each in expression.find_all(sqlglot.exp.Lambda) for name in each.expressions}
        for column in expression.find_all(sqlglot.exp.Column):
            first = column.parts[0].name  # of a struct the column, of views.price the table
            if first.lower() not in lower | own:
                raise file.fault(place, choices(first, f"a column of '{source}'", there))
        parts.append(f"{expression.sql(dialect='duckdb')} AS {quoted(alias)}")
    try:
        found = tables.view(name, f"SELECT {', '.join(parts)} FROM {quoted(source)}")
        whole = [column for column, kind in found.schema().items() if kind.is_decimal() and kind.scale == 0]
        # what Spark takes unsigned 64-bit integers for
        return found.mutate(**{column: found[column].cast("int64") for column in whole})
    except tables.faults as fault:
        for sql, place in given.values():
            _try(tables, file, place, f"SELECT {sql} FROM {quoted(source)}")
        raise file.fault(key, _first_line(fault)) from None


def _try(tables: Tables, file: RecipeFile, place: Key, query: str) -> None:
    try:
        tables.view("_tried", query)
    except tables.faults as error:
        raise file.fault(place, _first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _expression(file: RecipeFile, sql: str, place: Key, columns: tuple[str, ...]) -> sqlglot.exp.Expression:
    if sql in columns:
        return sqlglot.exp.column(sql, quoted=True)
    try:
        parsed: sqlglot.exp.Expression = sqlglot.parse_one(sql, read="duckdb")
    except sqlglot.errors.ParseError as error:
        raise file.fault(place, f"{sql!r} is no column and no SQL expression: {_first_line(error)}") from None
    return parsed


def _check_user(file: RecipeFile, rows: Table, key: Key) -> None:
    kind = rows._user.type()
    if not (kind.is_integer() or kind.is_string()):
        raise file.fault(key, f"users are integers or strings; this column is {kind}: cast it in a view")


def moment(tables: Tables, file: RecipeFile, rows: Table, unit: TimeUnit | None, key: Key) -> IntegerValue:
    """Microseconds since 1970 of the column `_when`."""
    when, kind = rows._when, rows._when.type()
    if kind.is_integer() or kind.is_floating():
        if unit is None:
            raise file.fault(key, f"a number ({kind}) as time needs 'time_unit': s, ms or us since 1970")
        exact = when.cast("float64" if kind.is_floating() else "int64")
        return (exact * MICROS[unit]).cast("int64")
    if unit is not None:
        raise file.fault((*key[:-1], "time_unit"), f"belongs to times that are numbers; this column is {kind}")
    if kind.is_date() or kind.is_timestamp():
        zoned = kind.is_timestamp() and kind.timezone is not None
        moments = when if zoned else when.cast("timestamp")
        if not zoned and file.recipe.time_zone != "UTC":
            moments = tables.of_zone(moments, file.recipe.time_zone)
        return tables.micros(moments)
    raise file.fault(
        key,
        f"times are timestamps, dates or numbers; this column is {kind}: parse it in a view, for example "
        "strptime(column, '%Y-%m-%d %H:%M:%S')",
    )


def _label(file: RecipeFile, rows: Table, label: str, key: Key) -> Table:
    column = rows[f"l_{label}"]
    kind = column.type()
    if not (kind.is_numeric() or kind.is_boolean()):
        raise file.fault(key, f"a label is 0, 1, true or false; this is {kind}: write a condition, for example x = 'y'")
    if not kind.is_boolean():  # 2 stands for what is no label, so that it is counted and refused
        column = ibis.cases((column.isnull(), None), (column == 0, 0), (column == 1, 1), else_=2)
    # Ibis takes 0, 1 and 2 for int8, which DuckDB does not: it would leave out a cast to int8 alone.
    return rows.mutate(**{f"l_{label}": column.cast("int16").cast("int8")})


def split_moment(file: RecipeFile, which: str) -> int:
    """The first moment of `valid` or `test` in microseconds since 1970."""
    written = getattr(file.recipe.split, which)
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        raise file.fault(("split", which), f"'{written}' is no date; write 2024-05-31 or 2024-05-31T12:00:00") from None
    zoned = at if at.tzinfo else at.replace(tzinfo=ZoneInfo(file.recipe.time_zone))
    return int((zoned - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() * 1_000_000)


def _split(tables: Tables, file: RecipeFile, rows: Table, domain: RecipeDomain) -> IntegerValue:
    split = file.recipe.split
    if split.column:
        part = rows._part.cast("string")
        return ibis.cases(*((part == name, i) for i, name in enumerate(SPLITS)), else_=3).cast("int8")
    if split.last_share:
        user = ibis.window(group_by="_user", order_by=[rows._time.desc(), _tie(tables, file, rows), *_scalars(rows)])
        place, count = ibis.row_number().over(user), rows.count().over(ibis.window(group_by="_user"))
        test, valid = (split.last_share.get(name, 0.0) for name in ("test", "valid"))
        tested = (count * test).floor()
        return ibis.cases((place < tested, 2), (place < tested + (count * valid).floor(), 1), else_=0).cast("int8")
    valid, test = (split_moment(file, which) for which in ("valid", "test"))
    return ibis.cases((rows._time < valid, 0), (rows._time < test, 1), else_=2).cast("int8")


def _tie(tables: Tables, file: RecipeFile, rows: Table) -> IntegerValue:
    """A hash that orders rows of one moment: by their values, the split would depend on what is to be predicted."""
    columns = [rows[name] for name in sorted(rows.columns) if name.startswith(("l_", "k_", "b_", "v_"))]
    numbers = [tables.number(column) for column in columns if _is_hashed(column)]
    return hash_of([tables.number(rows._user), mix_of(numbers)], file.recipe.seed + 4)


def _scalars(rows: Table) -> list[Value]:
    """Columns that break ties of time and hash, so that every engine orders rows alike."""
    names = sorted(name for name in rows.columns if name.startswith(("l_", "k_", "b_", "v_")))
    return [rows[name] for name in names if is_sortable(rows[name])]


def is_sortable(column: Value) -> bool:
    """Whether rows are ordered by a column: numbers, texts and truth values, no lists."""
    kind = column.type()
    return bool(kind.is_numeric() or kind.is_string() or kind.is_boolean())


def _is_hashed(column: Value) -> bool:
    kind = column.type()
    return bool(kind.is_integer() or kind.is_string() or kind.is_boolean())


def _cold(tables: Tables, recipe: Recipe, rows: Table) -> IntegerValue:
    if not recipe.cold_users:
        return ibis.literal(0, "int8")
    hashes = hash_of([tables.number(rows._user)], recipe.seed + 2)
    return (hashes < int(recipe.cold_users * HASH_RANGE)).cast("int8")


def _sampled(tables: Tables, file: RecipeFile, rows: Table, name: str) -> Table:
    """All rows with a positive label, and a share of the others with a larger weight."""
    domain = file.recipe.domains[name]
    positive: BooleanValue = ibis.or_(*(rows[f"l_{label}"].fill_null(0) == 1 for label in domain.labels))
    ids = [f"v_{f.column}" for f in features_of(file.recipe, name) if f.kind == "id" and is_read(f)]
    ids = [f"s_{column}" for column in domain.key] if domain.key else [c for c in ids if _is_hashed(rows[c])]
    for column in ids:
        if not _is_hashed(rows[column]):
            kind = rows[column].type()
            raise file.fault(
                ("domains", name, "key"), f"is of integers and texts; {column[2:]} is {kind}: cast it in a view"
            )
    numbers = [tables.number(rows[column]) for column in ids]
    keys = [tables.number(rows._user), tables.number(rows._time), mix_of(numbers)]
    hashes = hash_of(keys, file.recipe.seed + 3)
    share = domain.keep_negatives
    weight = ibis.cases((positive, rows._weight), else_=rows._weight / share).cast("float32")
    rows = rows.mutate(_weight=weight, _hash=hashes, _positive=positive)
    return rows.filter(_._positive | (_._hash < int(share * HASH_RANGE))).drop("_hash", "_positive")
