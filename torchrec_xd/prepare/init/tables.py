"""What each input is: rows of a domain, events, or attributes that are joined to rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.init.columns import Column, columns_of
from torchrec_xd.prepare.init.layouts import Known
from torchrec_xd.prepare.init.roles import Guess, Label, Roles, guess_roles, safe
from torchrec_xd.prepare.init.sample import Sample
from torchrec_xd.prepare.init.sql import aggregated, computed, moment, sql_name

SPLIT_COLUMN = "split_by_hash"
_SHOWN = 12
_HASHED = 8
"""Columns that the split by hash goes by."""


@dataclass
class Looked:
    """An input, its columns and their roles."""

    sample: Sample
    columns: dict[str, Column]
    roles: Roles
    known: Known | None = None
    """Where it is of a known data set."""

    @property
    def name(self) -> str:
        """Name of the input."""
        return self.sample.name


@dataclass(frozen=True)
class Join:
    """Attributes of users or items, found by a key that is unique in them."""

    looked: Looked
    key: str
    columns: tuple[str, ...]
    """Those that the rows do not have themselves."""


@dataclass
class DomainRows:
    """The rows of a domain, or of events: an input, and what a view adds to it."""

    looked: Looked
    parts: list[Looked] = field(default_factory=list)
    """Further inputs, whose rows follow."""
    joins: list[Join] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    """Column that the view adds, to its SQL over `r`."""
    conditions: list[str] = field(default_factory=list)
    user: str = ""
    """Name of the column after the view."""
    time: str | None = None

    @property
    def name(self) -> str:
        """Name of the domain: that of its input."""
        return self.looked.name

    @property
    def rows(self) -> str:
        """Name of the input, or of the view."""
        return f"{self.name}_rows" if self.query else self.name

    @property
    def query(self) -> str | None:
        """The view; None where the input needs none."""
        if not (self.parts or self.joins or self.extra or self.conditions):
            return None
        added = [f"{sql} AS {sql_name(name)}" for name, sql in self.extra.items()]
        lines = []
        for i, join in enumerate(self.joins):
            added += [f"k{i}.{sql_name(name)}" for name in join.columns]
            key = sql_name(join.key)
            lines.append(f"LEFT JOIN {sql_name(join.looked.name)} AS k{i} ON r.{key} = k{i}.{key}")
        source = sql_name(self.name)
        if self.parts:
            names = [self.name, *(part.name for part in self.parts)]
            rows = (f"SELECT *, '{name}' AS part FROM {sql_name(name)}" for name in names)
            source = f"({' UNION ALL '.join(rows)})"
        lines = [f"SELECT {', '.join(['r.*', *added])}", f"FROM {source} AS r", *lines]
        return "\n".join([*lines, *([f"WHERE {' AND '.join(self.conditions)}"] if self.conditions else [])])

    @property
    def user_guess(self) -> Guess:
        """The user's column in the input."""
        assert self.looked.roles.user is not None
        return self.looked.roles.user

    @property
    def user_column(self) -> Column:
        """Its values."""
        return self.looked.columns[self.user_guess.column]

    def labels(self) -> dict[str, Label]:
        """Labels by names that no two of them share."""
        named: dict[str, Label] = {}
        for label in self.looked.roles.labels:
            named[free_name(safe(label.name), set(named))] = label
        return named

    def columns(self) -> dict[str, Column]:
        """All columns of the rows, joined ones too."""
        joined = {name: join.looked.columns[name] for join in self.joins for name in join.columns}
        return {**self.looked.columns, **joined}


@dataclass
class Tables:
    """All inputs by what they are."""

    domains: list[DomainRows]
    events: list[DomainRows]
    unused: list[tuple[Looked, str]]
    """With the reason."""

    @property
    def logs(self) -> list[DomainRows]:
        """Domains and events."""
        return self.domains + self.events


def look(samples: list[Sample], known: list[Known] | None = None) -> list[Looked]:
    """The columns of all inputs, with their roles.

    Args:
        samples: one of each input.
        known: what is known of each; None where nothing is.
    """
    looked = []
    for i, sample in enumerate(samples):
        of = None if known is None else known[i]
        if of is not None and of.added:
            sample = _with_added(sample, of.added)  # noqa: PLW2901
        columns = columns_of(sample.table)
        roles = guess_roles(columns) if of is None or of.roles is None else of.roles
        if of is not None and of.roles is not None:
            _check_known(sample, roles, columns)
        looked.append(Looked(sample, columns, roles, of))
    return looked


def _with_added(sample: Sample, added: dict[str, str]) -> Sample:
    values = (f"{sql} AS {sql_name(name)}" for name, sql in added.items())
    return replace(sample, table=computed(sample.table, "*", *values))


def _check_known(sample: Sample, roles: Roles, columns: dict[str, Column]) -> None:
    """Refuse files that lack columns of the layout, and shares of labels that the sample knows better."""
    wanted = [guess.column for guess in (roles.user, roles.item, roles.time, *roles.labels) if guess is not None]
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise UserError(
            f"{sample.files.settings['path']}: has no column '{missing[0]}', which this --format needs; columns are: "
            f"{', '.join(list(columns)[:_SHOWN])}; leave --format out to have them guessed"
        )
    shares = aggregated(sample.table, *(f"avg(CAST({label.sql} AS DOUBLE))" for label in roles.labels))
    roles.labels = [replace(label, share=share or 0.0) for label, share in zip(roles.labels, shares, strict=True)]


def sort_out(inputs: list[Looked]) -> Tables:
    """Tell domains, events and attributes apart.

    Raises:
        UserError: no input has a user and a label.
    """
    parts = [each for each in inputs if each.known is not None and each.known.part_of is not None]
    inputs = [each for each in inputs if each not in parts]
    lookups = [each for each in inputs if _key_of(each, inputs) is not None]
    logs = [each for each in inputs if each not in lookups]
    domains = [DomainRows(each) for each in logs if each.roles.user and each.roles.labels]
    if not domains:
        raise UserError("\n".join(_no_domain(each) for each in inputs))
    for part in parts:
        assert part.known is not None
        next(rows for rows in domains if rows.name == part.known.part_of).parts.append(part)
    events = [DomainRows(each) for each in logs if each.roles.user and each.roles.time and not each.roles.labels]
    unused = []
    for each in logs:
        if not any(rows.looked is each for rows in (*domains, *events)):
            lacks = "no column of users" if each.roles.user is None else "neither a label nor a time"
            unused.append((each, f"{lacks} was found in it"))
    for each in lookups:
        key = _key_of(each, inputs)
        assert key is not None
        used = False
        for rows in domains:
            if each.known is not None and each.known.only not in (None, rows.name):
                continue
            if key in rows.looked.columns and rows.looked.columns[key].look == each.columns[key].look:
                taken = {name.lower() for name in rows.columns()}
                added = tuple(name for name in each.columns if name.lower() not in taken)
                if added:
                    rows.joins.append(Join(each, key, added))
                    used = True
        if not used:
            unused.append((each, f"no other input has its key {key} with values of the same type"))
    _settle(domains + events)
    if any(rows.time is None for rows in domains):
        for rows in domains:
            rows.extra[SPLIT_COLUMN] = _split_by_hash(rows)
    return Tables(domains, events, unused)


def _key_of(looked: Looked, inputs: list[Looked]) -> str | None:
    """The unique column by which an input's attributes are found from another one; None for a log."""
    if (looked.roles.time and looked.roles.user and looked.roles.labels) or (looked.known and looked.known.roles):
        return None
    others = [each for each in inputs if each is not looked and each.roles.user and each.roles.labels]
    for name, column in looked.columns.items():
        if (
            column.look in ("integer", "text")
            and column.unique
            and any(name in each.columns and not each.columns[name].unique for each in others)
        ):
            return name
    return None


def _settle(tables: list[DomainRows]) -> None:
    """One name and type of users, moments that are no text, no rows without user or time: by views."""
    for rows in tables:
        if rows.looked.known is not None:
            rows.extra |= rows.looked.known.added
    mixed = len({rows.user_column.look for rows in tables}) > 1
    common = tables[0].user_guess.column
    for rows in tables:
        user, time = rows.user_guess.column, rows.looked.roles.time
        taken = {name.lower() for name in rows.columns()}
        rows.user = user
        if mixed or user != common:
            rows.user = free_name(f"{common}_text" if mixed else common, taken)
            rows.extra[rows.user] = _user_value(rows, text=mixed)
        elif rows.user_column.of_floats:
            rows.user = free_name(f"{user}_integer", taken)
            rows.extra[rows.user] = _user_value(rows, text=False)
        if rows.user_column.nulls:
            rows.conditions.append(f"r.{sql_name(user)} IS NOT NULL")
        if time is None:
            continue
        rows.time, column = time.column, rows.looked.columns[time.column]
        value = f"r.{sql_name(time.column)}"
        if time.format is not None:
            rows.time = free_name(f"{time.column}_parsed", taken)
            text = value if column.look == "text" else f"CAST({value} AS VARCHAR)"
            rows.extra[rows.time] = moment(text, time.format)
        if column.nulls:
            rows.conditions.append(f"{value} IS NOT NULL")


def _user_value(rows: DomainRows, text: bool) -> str:
    """The user as an integer or text, also where integers are kept as floating point."""
    value = f"r.{sql_name(rows.user_guess.column)}"
    if rows.user_column.of_floats:
        value = f"CAST({value} AS BIGINT)"
    return f"CAST({value} AS VARCHAR)" if text else value


def _split_by_hash(rows: DomainRows) -> str:
    """Training, validation or test by the first two digits of a hash of a row's integers and texts."""
    keys = [name for name, column in rows.looked.columns.items() if column.look in ("integer", "text")]
    keys = sorted(keys, key=lambda name: -rows.looked.columns[name].distinct)[:_HASHED]
    texts = ", ".join(f"coalesce(CAST(r.{sql_name(name)} AS VARCHAR), '')" for name in keys)
    digits = f"substr(md5(concat_ws('|', {texts})), 1, 2)"
    if rows.parts:
        names = ", ".join(f"'{part.name}'" for part in rows.parts)
        return f"CASE WHEN r.part IN ({names}) THEN 'test' WHEN {digits} < '1a' THEN 'valid' ELSE 'train' END"
    return f"CASE WHEN {digits} < '1a' THEN 'valid' WHEN {digits} < '33' THEN 'test' ELSE 'train' END"


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    lower = {each.lower() for each in taken}
    found, count = name, 2
    while found.lower() in lower:
        found, count = f"{name}_{count}", count + 1
    return found


def _no_domain(looked: Looked) -> str:
    path = looked.sample.files.settings["path"]
    if looked.sample.settings.get("header") is False:
        return (
            f"{path}: its first line names no columns, and nothing can be guessed without; write one above the others"
        )
    columns = ", ".join(list(looked.columns)[:_SHOWN]) + (", …" if len(looked.columns) > _SHOWN else "")
    if looked.roles.user is None:
        lacks, fix = "no column looks like the user", "name it user_id (integers or texts, several rows for each user)"
    else:
        lacks = f"the user is {looked.roles.user.column}, but no column looks like a label"
        fix = "name a column of 0 and 1 click, buy or label, or one of numbers rating"
    return (
        f"{looked.sample.files.settings['path']}: {lacks}; columns are: {columns}; {fix}, or write the recipe by hand"
    )
