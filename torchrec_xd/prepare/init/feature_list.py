"""The list of features of a recipe: the user, items, their past, all other columns, the calendar."""

from __future__ import annotations

from typing import Any

from torchrec_xd.prepare.init.document import Document
from torchrec_xd.prepare.init.features import Draft, LeftOut, constant_per_user, draft, key_value, key_vocabulary
from torchrec_xd.prepare.init.roles import Label, safe
from torchrec_xd.prepare.init.sql import sql_name
from torchrec_xd.prepare.init.tables import DomainRows, Tables, free_name

WINDOW = 7
"""Days that totals look back: a count of all days grows, so test rows would have values that training never saw."""
HISTORY = 20
"""Events of a history."""


class _Names:
    """Names of written columns: each is given once."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def take(self, name: str) -> str:
        """A free name, the wanted one if possible."""
        found = free_name(safe(name), self.taken)
        self.taken.add(found)
        return found


def add_features(made: Document, tables: Tables) -> None:
    """Write the features, and what is left out with reasons."""
    labels = {label for domain in made.content["domains"].values() for label in domain["labels"]}
    names = _Names(labels | {"user", "time", "weight", "cold", "activity"})
    everywhere = [rows.name for rows in tables.domains]
    _user_feature(made, tables, names)
    tables_of_items = _item_features(made, tables, names)
    _past(made, tables, names, tables_of_items)
    drafts, left_out = _column_drafts(tables)
    rank = {"user": 0, "shared": 1, "specific": 2, "context": 3}
    grouped = [(_group(each, everywhere), each) for each in drafts]
    for group, each in sorted(grouped, key=lambda pair: rank[pair[0]]):
        content = dict(each.content)
        wanted = content.pop("column")
        column = names.take(wanted)
        if column != wanted and "value" not in content:
            content["value"] = sql_name(wanted)
        place = {"column": column, "kind": content.pop("kind"), "group": group}
        if set(each.domains) != set(everywhere) or group == "specific":
            place["domains"] = each.domains
        made.feature({**place, **content}, each.reason)
    if any(rows.time for rows in tables.domains):
        timed = [rows.name for rows in tables.domains if rows.time]
        domains = {} if timed == everywhere else {"domains": timed}
        for part in ("hour", "weekday"):
            name = names.take(part)
            content = {"column": name, "kind": "id", "group": "context", **domains, "calendar": part}
            made.feature(content, f"{part} of the row's time in UTC; another zone: time_zone")
    for domain, left in left_out:
        made.say("features", "end", text=f"left out: {left.column} of {domain} {left.reason}")


def _user_feature(made: Document, tables: Tables, names: _Names) -> None:
    first = tables.domains[0]
    column = first.user_column
    wanted = first.user
    value = {} if safe(wanted) == wanted == sql_name(wanted) else {"value": sql_name(wanted)}
    name = names.take(wanted)
    if name != wanted and not value:
        value = {"value": sql_name(wanted)}
    content = {"column": name, "kind": "id", "group": "user", **value, **key_vocabulary(column)}
    made.feature(content, "the user")


def _item_features(made: Document, tables: Tables, names: _Names) -> dict[str, tuple[str, str]]:
    """Features of items; returns for each log the item's column and the table it has."""
    by_name: dict[str, list[DomainRows]] = {}
    for rows in tables.domains:
        if rows.looked.roles.item is not None:
            column = rows.looked.columns[rows.looked.roles.item.column]
            by_name.setdefault(f"{rows.looked.roles.item.column}\0{column.look}", []).append(rows)
    found: dict[str, tuple[str, str]] = {}
    for key, rows_of in by_name.items():
        wanted, look_of = key.split("\0")
        name = names.take(wanted)
        column = max((rows.looked.columns[wanted] for rows in rows_of), key=lambda each: each.distinct)
        shared = len(rows_of) > 1
        content: dict[str, Any] = {"column": name, "kind": "id", "group": "shared" if shared else "specific"}
        if len(rows_of) < len(tables.domains) or not shared:
            content["domains"] = [rows.name for rows in rows_of]
        if name != key_value(column):
            content["value"] = key_value(column)
        question = f"is {wanted} the same thing in these domains?" if shared else None
        made.feature({**content, **key_vocabulary(column)}, f"the item: {_item_reason(rows_of[0])}", question)
        for rows in (*rows_of, *tables.events):
            item = rows.looked.roles.item
            if item is not None and item.column == wanted and rows.looked.columns[wanted].look == look_of:
                found[rows.name] = (wanted, name)
    return found


def _item_reason(rows: DomainRows) -> str:
    assert rows.looked.roles.item is not None
    return rows.looked.roles.item.reason


def _past(made: Document, tables: Tables, names: _Names, items: dict[str, tuple[str, str]]) -> None:
    """Histories and totals of what the user did, and of what happened to the item, before the row."""
    timed = [rows.name for rows in tables.domains if rows.time]
    if not timed:
        return
    domains = {} if len(timed) == len(tables.domains) else {"domains": timed}
    for rows in tables.logs:
        if rows.time is None:
            continue
        label = next(iter(rows.labels().values()), None)
        where = {} if label is None else {"where": _is_positive(rows, label)}
        if rows.name in items:
            column, table = items[rows.name]
            history = {"events": rows.name, "value": key_value(rows.looked.columns[column]), **where}
            content: dict[str, Any] = {
                "column": names.take(f"last_{rows.name}"),
                "kind": "sequence",
                "group": "sequence",
                **domains,
            }
            content |= {"table": table, "length": HISTORY, "history": history}
            kind = "events" if label is None else "positive events"
            made.feature(content, f"the user's last {kind} of {rows.name} before the row; shares the table of {table}")
        total: dict[str, Any] = {"events": rows.name, "what": "count", "by": ["user"], "days": WINDOW}
        content = {"column": names.take(f"{rows.name}_of_user"), "kind": "id", "group": "user", **domains}
        made.feature({**content, "total": total, "log_buckets": 1024}, f"how active the user was in {rows.name}")
    for rows in tables.domains:
        if rows.time is None or rows.name not in items:
            continue
        column, _ = items[rows.name]
        total = {"events": rows.name, "what": "count", "by": [column], "days": WINDOW}
        content = {
            "column": names.take(f"{rows.name}_of_item"),
            "kind": "id",
            "group": "specific",
            "domains": [rows.name],
        }
        made.feature({**content, "total": total, "log_buckets": 65_536}, "how popular the item was")


def _is_positive(rows: DomainRows, label: Label) -> str:
    """The SQL condition of a positive event."""
    if label.sql != sql_name(label.column) or rows.looked.columns[label.column].look == "boolean":
        return label.sql
    return f"{label.sql} = 1"


def _column_drafts(tables: Tables) -> tuple[list[Draft], list[tuple[str, LeftOut]]]:
    """Features of all columns that have no role; those of one name and kind are one feature."""
    merged: dict[tuple[str, str], Draft] = {}
    left_out: list[tuple[str, LeftOut]] = []
    for rows in tables.domains:
        roles = rows.looked.roles
        named = (roles.user, roles.item, roles.time)
        taken = {guess.column for guess in named if guess is not None} | {label.column for label in roles.labels}
        of_user = constant_per_user(rows.looked.sample.table, rows.user_column, rows.looked.columns)
        of_user |= {name for join in rows.joins if join.key == rows.user_guess.column for name in join.columns}
        for name, column in rows.columns().items():
            if name in roles.after:
                left_out.append((rows.name, LeftOut(name, roles.after[name])))
            known, joined = rows.looked.known, name not in rows.looked.columns
            if joined:
                known = next(join.looked.known for join in rows.joins if name in join.columns)
            if known is not None and name in known.left_out:
                left_out.append((rows.name, LeftOut(name, known.left_out[name])))
                continue
            if name in taken or name in roles.after or (known is not None and name in known.added):
                continue
            content = None if known is None else known.features.get(name)
            made = draft(column, name in of_user, content)
            if isinstance(made, LeftOut):
                left_out.append((rows.name, made))
                continue
            made.domains = [rows.name]
            _merge(merged, name, made)
    return list(merged.values()), left_out


def _merge(merged: dict[tuple[str, str], Draft], name: str, made: Draft) -> None:
    """Put a feature to those of the same name and kind of value in other domains."""
    other = merged.get((name, made.family))
    if other is None:
        merged[name, made.family] = made
        return
    # Many values in one domain are enough for numbers and large vocabularies; what is missing in one is missing.
    richer = max(other, made, key=lambda each: (each.content["kind"] == "dense", len(each.content)))
    merged[name, made.family] = Draft(
        richer.content,
        richer.reason,
        made.family,
        of_user=other.of_user and made.of_user,
        context=made.context,
        domains=[*other.domains, *made.domains],
    )


def _group(each: Draft, everywhere: list[str]) -> str:
    if each.of_user:
        return "user"
    if each.context:
        return "context"
    return "shared" if len(each.domains) > 1 else "specific"
