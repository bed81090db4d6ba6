"""What is wrong with a recipe, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlglot

from torchrec_xd.prepare.dialect import refusal
from torchrec_xd.prepare.features import features_of, is_read, table_of, way_of
from torchrec_xd.prepare.recipe import RecipeDomain, RecipeFeature
from torchrec_xd.prepare.recipe_file import Key, RecipeFile, choices
from torchrec_xd.prepare.rows import split_moment

WAYS = ("vocabulary", "buckets", "quantiles", "log_buckets", "hash", "as_is")
"""How a value becomes an id; a feature names one at most."""
EDGES = ("buckets", "quantiles", "log_buckets")
SOURCES = ("value", "history", "total", "calendar")
RESERVED = ("user", "time", "weight", "cold", "activity")
"""Columns that are written for every row."""
IDS = ("id", "bag", "sequence")
KINDS: dict[str, tuple[str, ...]] = {
    "log1p": ("dense",),
    "standard": ("dense",),
    "clip": ("dense",),
    "missing": ("dense",),
    "indicator": ("dense", "vector"),
    "length": ("sequence", "vector"),
    "separator": ("bag", "sequence"),
    "pooling": ("bag",),
    "history": ("sequence",),
    "total": ("id", "dense"),
    "calendar": ("id",),
    "table": IDS,
    "dim": (*IDS, "vector"),
    "vocabulary": IDS,
    "hash": IDS,
    "as_is": IDS,
    **dict.fromkeys(EDGES, ("id",)),
}
"""Key of a feature to the kinds that it belongs to."""
_NAME = re.compile(r"[^./\\@]+")


def _given(feature: RecipeFeature, keys: Iterable[str]) -> list[str]:
    """The keys that a feature gives another value than the default."""
    return [key for key in keys if getattr(feature, key) != RecipeFeature.model_fields[key].default]


@dataclass(frozen=True)
class Rule:
    """What a feature must not be: `broken` is what a message shows of it, None or empty where it keeps the rule."""

    key: str | None
    broken: Callable[[RecipeFeature], Any]
    message: str
    """With `{f}`, the feature, and `{broken}`."""


RULES = (
    Rule(
        None,
        lambda f: " and ".join(given) if len(given := _given(f, SOURCES)) > 1 else None,
        "a feature has one source, and this one names {broken}",
    ),
    Rule(
        None,
        lambda f: " and ".join(given) if len(given := _given(f, WAYS)) > 1 else None,
        "a value becomes an id in one way, and this feature names {broken}",
    ),
    Rule(
        "length",
        lambda f: f.kind in ("sequence", "vector") and f.length is None,
        "is missing: every {f.kind} has one",
    ),
    Rule(
        "group",
        lambda f: (f.kind == "sequence") != (f.group == "sequence"),
        "kind sequence and group sequence go together; this is kind {f.kind} in group {f.group}",
    ),
    Rule("domains", lambda f: f.domains == (), "names no domain; leave it out for all"),
    Rule(
        "domains",
        lambda f: f.group == "specific" and (f.domains is None or len(f.domains) != 1),
        "a specific feature is of one domain: domains: [NAME]; or choose the group 'shared'",
    ),
    Rule(
        None,
        lambda f: f.total is not None and f.kind == "id" and not _given(f, EDGES),
        "a total becomes an id by 'buckets', 'quantiles' or 'log_buckets': name one of them",
    ),
    Rule("calendar", lambda f: f.calendar and _given(f, WAYS), "is an id already; leave out {broken[0]}"),
    Rule("separator", lambda f: f.separator == "", "is empty; name the text between two ids"),
    Rule("separator", lambda f: f.separator and not is_read(f), "cuts the text of a 'value', which this feature lacks"),
    Rule(
        "buckets",
        lambda f: f.buckets is not None and list(f.buckets) != sorted(set(f.buckets)) and list(f.buckets),
        "edges ascend; these are {broken}",
    ),
    Rule("buckets", lambda f: f.buckets == (), "names no edge; write the first value of each bucket but the lowest"),
    Rule(
        "clip",
        lambda f: f.clip is not None and f.clip[0] >= f.clip[1] and list(f.clip),
        "is the least and the greatest value; these are {broken}",
    ),
)


def check_recipe(file: RecipeFile) -> None:
    """Refuse what contradicts itself.

    Raises:
        UserError: a name that is not there, two ways for one feature, a key that its kind has no use for, a feature
            that would know the label, or SQL that the engine computes otherwise.
    """
    _check_names(file)
    for name in file.recipe.domains:
        _check_domain(file, name)
    for name, events in file.recipe.events.items():
        _check_source(file, events.rows, ("events", name, "rows"))
    for feature in file.recipe.features:
        _check_feature(file, feature)
    _check_tables(file)
    if file.recipe.activity is not None and file.recipe.activity.events not in file.recipe.events:
        raise file.unknown(("activity", "events"), file.recipe.activity.events, "under 'events'", file.recipe.events)
    if file.recipe.activity is not None and file.recipe.activity.what not in ("count", "sum"):
        text = f"is a whole number of actions, by count or sum; this is {file.recipe.activity.what}"
        raise file.fault(("activity", "what"), text)
    _check_split(file)
    if file.recipe.engine.spark is not None:
        _check_dialect(file)


def _check_dialect(file: RecipeFile) -> None:
    """Refuse SQL that Spark computes otherwise; what is no SQL is found where it is used."""
    recipe = file.recipe
    found: list[tuple[Key, str | None]] = [(("views", name), query) for name, query in recipe.views.items()]
    for name, domain in recipe.domains.items():
        found += [(("domains", name, "labels", label), sql) for label, sql in domain.labels.items()]
    for place, feature in enumerate(recipe.features):
        found.append((("features", place, "value"), feature.value))
        for kind in ("history", "total"):
            made = getattr(feature, kind)
            found += [(("features", place, kind, key), getattr(made, key)) for key in ("value", "where") if made]
    for key, sql in found:
        reason = refusal(sql or "NULL")
        if reason is not None:
            raise file.fault(key, reason)


def _check_names(file: RecipeFile) -> None:
    """Names are of files and of modules of a net, and no two columns of a file have one."""
    recipe = file.recipe
    for kind, empty in (("domains", not recipe.domains), ("features", not recipe.features)):
        if empty:
            raise file.fault((kind,), "is empty; a data set has at least one")
    names: list[tuple[Key, str | None]] = [
        ((kind, name), name) for kind in ("domains", "events") for name in getattr(recipe, kind)
    ]
    names += [
        (("domains", name, "labels", label), label) for name, each in recipe.domains.items() for label in each.labels
    ]
    for place, feature in enumerate(recipe.features):
        names += [(("features", place, "column"), feature.column), (("features", place, "table"), feature.table)]
    for key, wanted in names:
        if wanted is not None and not _NAME.fullmatch(wanted):
            raise file.fault(
                key, f"'{wanted}' is empty or has one of . / \\ @; it names files and parts of nets: rename it"
            )
    written: dict[str, str] = dict.fromkeys(RESERVED, "a column of every data set")
    for name, domain in recipe.domains.items():
        for label in domain.labels:
            _refuse_twice(file, written, label, "a label", ("domains", name, "labels", label))
    for place, feature in enumerate(recipe.features):
        for column in (feature.column, *([f"{feature.column}_missing"] if feature.indicator else [])):
            _refuse_twice(file, written, column, "a feature", ("features", place, "column"), once=True)
    for name, domain in recipe.domains.items():
        for column in domain.keep:
            _refuse_twice(file, written, column, "a column that is kept", ("domains", name, "keep"))


def _refuse_twice(
    file: RecipeFile, written: dict[str, str], name: str, what: str, key: Key, once: bool = False
) -> None:
    """Engines do not tell small letters from capitals in names of columns."""
    low = name.lower()
    if low in written and (once or written[low] != what):
        twice = f"{what} already" if written[low] == what else f"{what} and {written[low]} too"
        raise file.fault(key, f"'{name}' is {twice}; name one of them otherwise")
    written[low] = what


def _check_source(file: RecipeFile, name: str, key: Key) -> None:
    known = [*file.recipe.inputs, *file.recipe.views]
    if name not in known:
        raise file.unknown(key, name, "an input or a view", known)


def _check_domain(file: RecipeFile, name: str) -> None:
    domain, key = file.recipe.domains[name], ("domains", name)
    _check_source(file, domain.rows, (*key, "rows"))
    if not domain.labels:
        raise file.fault((*key, "labels"), "is empty; name what is predicted, for example {click: clicked}")
    for label in domain.nullable:
        if label not in domain.labels:
            raise file.unknown((*key, "nullable"), label, "a label", domain.labels)
    if domain.time is None and file.recipe.split.column is None:
        raise file.fault(key, "rows are split by time: name the column of it, 'time'")
    if domain.time is None and domain.time_unit is not None:
        raise file.fault((*key, "time_unit"), "belongs to a 'time', and there is none")
    if domain.key is not None and domain.keep_negatives == 1:
        raise file.fault((*key, "key"), "is for choices by hash; this domain keeps all rows: leave it out")


def _check_feature(file: RecipeFile, feature: RecipeFeature) -> None:
    for name in feature.domains or ():
        if name not in file.recipe.domains:
            raise file.feature_fault(feature.column, choices(name, "a domain", file.recipe.domains), "domains")
    for source, made in (("history", feature.history), ("total", feature.total)):
        if made is not None and made.events not in file.recipe.events:
            text = choices(made.events, "under 'events'", file.recipe.events)
            raise file.feature_fault(feature.column, text, f"{source}.events")
    for key in _given(feature, KINDS):
        if feature.kind not in KINDS[key]:
            raise file.feature_fault(
                feature.column,
                f"belongs to kind {' or '.join(KINDS[key])}; this feature is of kind {feature.kind}",
                key,
            )
    for rule in RULES:
        broken = rule.broken(feature)
        if broken:
            raise file.feature_fault(feature.column, rule.message.format(f=feature, broken=broken), rule.key)
    for name, domain in file.recipe.domains.items():
        if feature in features_of(file.recipe, name):
            if domain.time is None and not is_read(feature):
                text = f"needs the time of a row, and domain '{name}' names no column for it: 'time'"
                raise file.feature_fault(feature.column, text)
            _check_future(file, feature, domain)


def _check_future(file: RecipeFile, feature: RecipeFeature, domain: RecipeDomain) -> None:
    """A feature is of what is known before the row's outcome."""
    made = feature.history or feature.total
    source = "history." if feature.history else "total." if feature.total else ""
    expressions = {"value": feature.value} if made is None else {"value": made.value, "where": made.where}
    expressions |= {"per": feature.total.per} if feature.total is not None else {}
    for key, sql in expressions.items():
        tree = parsed(sql)
        others = tree.find(sqlglot.exp.Window, sqlglot.exp.AggFunc, sqlglot.exp.Query) if tree is not None else None
        if others is not None:
            raise file.feature_fault(
                feature.column,
                f"'{others.sql(dialect='duckdb')}' reads other rows, later ones too; use a 'total' or a 'history', "
                "which read what was before, or a column of a view",
                f"{source}{key}",
            )
    columns = columns_of(feature.value or feature.column) if is_read(feature) else set()
    if feature.total is not None:
        columns = {column.lower() for column in feature.total.by}
    for label, sql in domain.labels.items():
        shared = sorted((columns & columns_of(sql)) - {domain.user.lower(), (domain.time or "").lower()})
        if shared and not feature.known_before:
            raise file.feature_fault(
                feature.column,
                f"is made of '{shared[0]}', and so is the label '{label}': it would tell the model what it has to "
                "predict; leave the feature out, or write 'known_before: true' if the value is known when the row is "
                "shown",
                "total.by" if feature.total else "value",
            )


def parsed(sql: str | None) -> sqlglot.exp.Expression | None:
    """An SQL expression; None of what is none, which the engine explains."""
    try:
        return sqlglot.parse_one(sql, read="duckdb") if sql else None
    except sqlglot.errors.SqlglotError:
        return None


def columns_of(sql: str | None) -> set[str]:
    """The columns that a column name or SQL expression reads, in lower case."""
    tree = parsed(sql)
    found = {column.name.lower() for column in tree.find_all(sqlglot.exp.Column)} if tree is not None else set()
    return found or ({sql.lower()} if sql else set())


def _check_tables(file: RecipeFile) -> None:
    """Features of one table make the same ids of the same values."""
    tables: dict[str, list[RecipeFeature]] = {}
    for feature in file.recipe.features:
        if feature.kind in IDS:
            tables.setdefault(table_of(feature), []).append(feature)
    for table, features in tables.items():
        kinds = {feature.kind: feature.column for feature in features}
        if {"bag", "sequence"} <= kinds.keys():
            raise file.feature_fault(
                kinds["bag"],
                f"is a bag, and '{kinds['sequence']}' of the same table '{table}' a sequence: one is looked up as "
                "a sum, the other row by row; give the bag another table",
                "table",
            )
        first, *others = sorted(features, key=lambda feature: feature.vocabulary is None)
        for other in others:
            one, two = (_way(feature) for feature in (first, other))
            if two != one and (way_of(other) != "vocabulary" or other.vocabulary is not None or one[0] != two[0]):
                raise file.feature_fault(
                    other.column,
                    f"'{first.column}' ({one[0]}: {one[1]}) and '{other.column}' ({two[0]}: {two[1]}) share the table "
                    f"'{table}', and make their ids in different ways; give both the same, or two tables",
                    "table",
                )
            if (other.dim or file.recipe.dim) != (first.dim or file.recipe.dim):
                raise file.feature_fault(
                    other.column, f"'{first.column}' shares its table '{table}' and has another width", "dim"
                )
        if (first.dim or file.recipe.dim) % 4:
            raise file.feature_fault(first.column, f"width {first.dim or file.recipe.dim} is no multiple of 4", "dim")


def _way(feature: RecipeFeature) -> tuple[str, Any]:
    way = way_of(feature)
    setting = getattr(feature, way)
    return way, setting if way != "vocabulary" or setting is None else setting.model_dump()


def _check_split(file: RecipeFile) -> None:
    split = file.recipe.split
    by_time = [name for name in ("valid", "test") if getattr(split, name) is not None]
    ways = [*by_time[:1], *(name for name in ("last_share", "column") if getattr(split, name) is not None)]
    if len(ways) != 1:
        raise file.fault(
            ("split",), "rows are split in one way: {valid: DATE, test: DATE}, {last_share: {…}}, or {column: NAME}"
        )
    if by_time and len(by_time) < 2:
        raise file.fault(("split",), "valid and test both need their first moment")
    if by_time and split_moment(file, "valid") >= split_moment(file, "test"):
        raise file.fault(("split", "test"), f"begins before validation ({split.test}, {split.valid})")
    shares = split.last_share
    if shares is not None and not (len(shares) == 2 and min(shares.values()) > 0 and sum(shares.values()) < 1):
        raise file.fault(
            ("split", "last_share"), f"has a share above 0 for valid and for test, below 1 together; this is {shares}"
        )


def check_same_features(file: RecipeFile, learnt: RecipeFile) -> None:
    """Refuse encoders of another recipe: what they learnt would be taken for what this recipe says.

    Args:
        file: the recipe.
        learnt: the recipe that the encoders learnt from; inputs, views, domains and split may be others.

    Raises:
        UserError: names the feature and the key that differ.
    """
    remedy = "write it as it was, or learn anew, without --encoders"
    if file.recipe.time_zone != learnt.recipe.time_zone:
        text = f"the encoders ({learnt.origin}) learnt with {learnt.recipe.time_zone}; {remedy}"
        raise file.fault(("time_zone",), text)
    own = {feature.column: feature for feature in file.recipe.features}
    theirs = {feature.column: feature for feature in learnt.recipe.features}
    if missing := [column for column in theirs if column not in own]:
        raise file.fault(("features",), f"the encoders ({learnt.origin}) also know '{missing[0]}'; {remedy}")
    for column, feature in own.items():
        if column not in theirs:
            raise file.feature_fault(column, f"the encoders ({learnt.origin}) know no such feature; {remedy}")
        for key in RecipeFeature.model_fields:
            was, now = getattr(theirs[column], key), getattr(feature, key)
            if was != now and key != "domains":
                raise file.feature_fault(column, f"is {now}, and was {was} in {learnt.origin}; {remedy}", key)
