"""Which column is the user, the item, the time and the label: guesses by name and values, with their reasons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from torchrec_xd.prepare.init.columns import Column
from torchrec_xd.prepare.init.sql import aggregated, sql_name
from torchrec_xd.prepare.recipe import TimeUnit

_KEY = r"(id|ids|key|no|nr|num|number|code|hash|uuid|guid|token|index|idx)?"
_USERS = (
    r"(user|u|usr|uu)",
    r"(member|customer|cust|client|shopper|buyer|reader|viewer|listener|player|subscriber|person|reviewer)",
    r"(visitor|account|household|profile|cookie|device)",
    r"(session|visit|search|query|request)",
)
_ITEMS = (
    r"(item|i|product|prod|article|sku|asin|goods)",
    r"(movie|video|song|track|book|news|post|photo|clip|game|recipe|listing|content|document|doc|show|poi|place|"
    r"restaurant|hotel|app|show|parentasin)",
    r"(ad|ads|adgroup|coupon|offer|creative|promotion|deal|campaign|banner)",
    r"(business|shop|store|merchant|seller|artist)",
)
_TIME = re.compile(r"(time|timestamp|ts|date|datetime|day|at|when|moment|epoch|dt|timems|timesec)$")
_NOT_EVENT = re.compile(
    r"(birth|born|release|publish|upload|regist|signup|signed|join|expir|start|end|updat|modif|valid|until|launch|creation"
    r"|last|first)"
)
_AFTER = re.compile(
    r"(dwell|watch(ed)?(time|ms|sec|dur)|watchratio|play(ing|ed)?(time|ms|sec|dur)|staytime|viewtime|timespent|spenttime|"
    r"listen(ed|ing)?(time|ms|sec)|pricepaid|paid(price|amount)?$|amountpaid|revenue|gmv|spent$|ordervalue|orderid|"
    r"transactionid|conversiontime|clicktime|completion|returned|refund)"
)
_OUTCOME = (
    r"(click|clk|clicked|buy|bought|purchase|purchased|order|ordered|pay|paid|label|target|like|liked|likes|convert|"
    r"converted|conversion|conv|redeem|redeemed|favou?rite|favou?rited|fav|share|shared|follow|followed|comment|"
    r"commented|forward|forwarded|hate|install|installed|subscribe|subscribed|watched|finish|finished|played|cart|"
    r"addtocart|addedtocart|basket|collect|collected|save|saved|download|downloaded|engaged|engagement|response|"
    r"longview|profileenter|booked|booking|read|opened|open|upvote|upvoted|skip|skipped|success|y|islabel)"
)
_LABEL = re.compile(rf"^(is|has|was|did|label|target)?{_OUTCOME}(label|flag|ed)?$")
_RATING = re.compile(r"^(user)?(rating|rate|ratings|score|stars|overall|grade|reviewscore|reviewrating)$")
_ACTION = re.compile(
    r"^(event|eventtype|eventname|action|actiontype|behaviou?r|behaviou?rtype|interaction|btag|activity)$"
)
_POSITIVE = ("purchase", "buy", "order", "transaction", "pay", "conversion", "cart", "fav", "like", "click")
_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%Y%m%d%H%M%S",
    "%Y%m%d",
)
_EPOCHS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6}
_YEAR_1990, _YEAR_2100 = 631_152_000, 4_102_444_800


@dataclass(frozen=True)
class Guess:
    """A column, and why."""

    column: str
    reason: str


@dataclass(frozen=True)
class Time(Guess):
    """The moment of a row."""

    unit: TimeUnit | None = None
    """Of numbers."""
    format: str | None = None
    """Of text, as `strptime` takes it."""


@dataclass(frozen=True)
class Label(Guess):
    """A label: its name, and the SQL of it."""

    name: str = ""
    sql: str = ""
    share: float = 0.0
    """Of positives in the sample."""
    question: str | None = None


@dataclass
class Roles:
    """What the columns of one table are, so far as it can be guessed."""

    user: Guess | None = None
    item: Guess | None = None
    time: Time | None = None
    labels: list[Label] = field(default_factory=list)
    after: dict[str, str] = field(default_factory=dict)
    """Columns that are known only after the label, or are what it is made of -> why they are no features."""


def plain(name: str) -> str:
    """Letters and digits of a name, lower case."""
    return re.sub(r"[\W_]+", "", name).lower()


def guess_roles(columns: dict[str, Column]) -> Roles:
    """Guess from names and values."""
    roles = Roles()
    roles.user = _key(columns, _USERS, set(), "user")
    taken = {roles.user.column} if roles.user else set()
    roles.item = _key(columns, _ITEMS, taken, "item")
    taken |= {roles.item.column} if roles.item else set()
    roles.time = _time(columns, taken)
    taken |= {roles.time.column} if roles.time else set()
    _labels(roles, columns, taken)
    for name in columns:
        if name not in taken and name not in roles.after and _AFTER.search(plain(name)):
            roles.after[name] = "looks as if it were known only after the label. QUESTION: is that so?"
    return roles


def _key(columns: dict[str, Column], patterns: tuple[str, ...], taken: set[str], what: str) -> Guess | None:
    """The first column that is named like a user or item."""
    for rank, pattern in enumerate(patterns):
        # A device or a shop is one by its key only: `device` alone is rather `mobile` than a user.
        key = _KEY if rank < 2 else _KEY.removesuffix("?")
        named = re.compile(rf"^(the|raw|hashed|anon|encrypted)?{pattern}{key}$")
        for name, column in columns.items():
            if name in taken or column.look not in ("integer", "text") or column.distinct < 2:
                continue
            if named.match(plain(name)):
                repeats = "" if column.unique else f", {column.distinct:,} values in {column.rows:,} rows of the sample"
                kind = "integers" if column.look == "integer" else "texts"
                return Guess(
                    name, f"named like a {what}, {kind}{repeats}" if what == "user" else f"named like an {what}"
                )
    return None


def _time(columns: dict[str, Column], taken: set[str]) -> Time | None:
    """The best column of moments: by type, then by name, then by what can be parsed."""
    best: tuple[int, Time] | None = None
    for name, column in columns.items():
        if name in taken or column.distinct < 2 or column.nulls > column.rows / 2:
            continue
        found = _moment(name, column)
        if found is None:
            continue
        key = plain(name)
        score = 4 * (not _NOT_EVENT.search(key)) + 2 * bool(_TIME.search(key))
        score += column.look == "moment" and pa.types.is_timestamp(column.values.type)
        if best is None or score > best[0]:
            best = score, found
    return best[1] if best else None


def _moment(name: str, column: Column) -> Time | None:
    if column.look == "moment":
        kind = "timestamps" if pa.types.is_timestamp(column.values.type) else "dates"
        return Time(name, kind)
    timely = bool(_TIME.search(plain(name)))
    if column.look in ("integer", "number") and timely:
        low, high = column.span
        for unit, scale in _EPOCHS.items():
            if _YEAR_1990 * scale <= low and high <= _YEAR_2100 * scale:
                words = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}[unit]
                return Time(name, f"numbers in the range of {words} since 1970", unit=unit)
    if column.look == "text" or (column.look == "integer" and timely and 19_000_000 < column.span[0] < 21_010_000):
        texts = column.values.cast(pa.string())
        form = _format(texts) if column.look == "text" else "%Y%m%d"
        if form is not None and (column.look == "text" or _parsing(texts, [form])):
            return Time(name, f"text that reads as {form}", format=form)
    return None


def _format(texts: pa.Array) -> str | None:
    """The first format that all texts have."""
    first = str(texts[0])
    if not (6 <= len(first) <= 32 and first[0].isdigit() and sum(char.isdigit() for char in first) >= 4):
        return None
    likely = _parsing(texts.slice(0, 10), _FORMATS)
    return next(iter(_parsing(texts, likely)), None) if likely else None


def _parsing(texts: pa.Array, forms: Sequence[str]) -> list[str]:
    """The formats, of some, that all texts have; in years that logs can be of."""
    test = "bool_and(coalesce(try_strptime(t, '{}') BETWEEN '1970-01-01' AND '2200-01-01', false))"
    found = aggregated(pa.table({"t": texts}), *(test.format(form) for form in forms))
    return [form for form, parses in zip(forms, found, strict=True) if parses]


def ambiguous(form: str, texts: pa.Array) -> bool:
    """Whether day and month could be the other way round."""
    other = form.replace("%d/%m", "%m/%d") if "%d/%m" in form else form.replace("%m/%d", "%d/%m")
    return "/%Y" in form and other != form and bool(_parsing(texts, [other]))


def _labels(roles: Roles, columns: dict[str, Column], taken: set[str]) -> None:
    free = {name: column for name, column in columns.items() if name not in taken}
    binary = {name: column for name, column in free.items() if _is_binary(column)}
    for name, column in binary.items():
        if _LABEL.match(plain(name)):
            roles.labels.append(_binary_label(name, column, "named like a label"))
    for name, column in free.items():
        if _RATING.match(plain(name)) and column.look in ("integer", "number") and 2 < column.distinct <= 101:
            roles.after[name] = "is a rating: the label, or known as late as it"
            if not roles.labels:
                roles.labels.append(_rating_label(name, column))
    if not roles.labels:
        for name, column in free.items():
            if _ACTION.match(plain(name)) and column.look == "text" and column.distinct <= 30:
                roles.labels += _action_labels(name, column)
                roles.after[name] = "is the action that the label is made of"
    if not roles.labels:
        guesses = [name for name in binary if plain(name).startswith(("is", "has", "was", "did"))] or list(binary)
        if guesses:
            question = "is this the label? It is the first column of 0 and 1"
            roles.labels.append(_binary_label(guesses[0], columns[guesses[0]], "holds 0 and 1 only", question))


def _is_binary(column: Column) -> bool:
    if column.look == "boolean":
        return True
    return column.look == "integer" and column.span[0] >= 0 and column.span[1] <= 1


def _binary_label(name: str, column: Column, reason: str, question: str | None = None) -> Label:
    share = float(pc.mean(column.values.cast(pa.float64() if column.look != "boolean" else pa.int8())).as_py())
    if column.distinct == 1:
        question = f"all rows of the sample have the same value ({share:.0f}): is this a label?"
    kind = "true and false" if column.look == "boolean" else "0 and 1"
    return Label(name, f"{reason}, {kind}", safe(name), sql_name(name), share, question)


def _rating_label(name: str, column: Column) -> Label:
    low, high = column.span
    values: list[Any] = sorted(column.values.unique().to_pylist())
    threshold = next(value for value in values if value >= low + 0.7 * (high - low))
    share = float(pc.mean(pc.cast(pc.greater_equal(column.values, threshold), pa.float64())).as_py())
    return Label(
        name,
        f"ratings from {low:g} to {high:g}",
        "liked",
        f"{sql_name(name)} >= {threshold:g}",
        share,
        f"is {threshold:g} the right limit of what counts as positive?",
    )


def _action_labels(name: str, column: Column) -> list[Label]:
    values = sorted(column.values.unique().to_pylist())
    for word in _POSITIVE:
        found = next((value for value in values if word in plain(value)), None)
        if found is not None and len(values) > 1:
            text = found.replace("'", "''")
            question = f"rows are actions ({', '.join(values[:6])}): is the label what should be predicted of a row?"
            share = float(pc.mean(pc.cast(pc.equal(column.values, found), pa.float64())).as_py())
            return [Label(name, f"the action '{found}'", safe(found), f"{sql_name(name)} = '{text}'", share, question)]
    return []


def safe(name: str) -> str:
    """A name for a column that is written: letters, digits and underscores."""
    return re.sub(r"\W+", "_", name).strip("_") or "column"
