"""A first recipe for what was seen of some files: every guess with its reason, every doubt as a question."""

from __future__ import annotations

from typing import Any

from torchrec_xd.prepare.init.document import Document
from torchrec_xd.prepare.init.feature_list import add_features
from torchrec_xd.prepare.init.layouts import Known
from torchrec_xd.prepare.init.roles import ambiguous
from torchrec_xd.prepare.init.sample import Sample
from torchrec_xd.prepare.init.split import cuts
from torchrec_xd.prepare.init.sql import sql_name
from torchrec_xd.prepare.init.tables import SPLIT_COLUMN, DomainRows, Tables, look, sort_out

RARE = 0.01


def draft_recipe(name: str, samples: list[Sample], known: list[Known] | None = None) -> Document:
    """Guess a recipe, or write that of a known data set.

    Raises:
        UserError: no input has a user and a label.
    """
    tables = sort_out(look(samples, known))
    made = Document({"name": name, "inputs": {}, "views": {}, "domains": {}, "events": {}, "features": []})
    _inputs(made, tables)
    target = min(tables.domains, key=lambda rows: rows.looked.sample.rows)
    for rows in tables.domains:
        _domain(made, rows, is_target=rows is target, alone=len(tables.domains) == 1)
    for rows in tables.logs:
        _events(made, rows, is_domain=rows in tables.domains)
    add_features(made, tables)
    _split(made, tables, target)
    made.content["dim"] = 8
    made.content = {key: value for key, value in made.content.items() if value != {}}
    return made


def _inputs(made: Document, tables: Tables) -> None:
    used = [rows.looked for rows in tables.logs]
    for rows in tables.logs:
        used += rows.parts
        used += [join.looked for join in rows.joins if join.looked not in used]
    for looked in used:
        settings, about = looked.sample.settings, "" if looked.sample.exact else "about "
        made.content["inputs"][looked.name] = settings["path"] if set(settings) == {"path"} else settings
        made.say("inputs", looked.name, text=f"{about}{looked.sample.rows:,} rows, {len(looked.columns)} columns")
        for question in looked.sample.questions:
            made.ask("inputs", looked.name, text=question)
    for looked, reason in tables.unused:
        made.ask("inputs", "end", text=f"'{looked.name}' ({looked.sample.settings['path']}) is not used: {reason}")
    for rows in tables.logs:
        if rows.query is not None:
            made.content["views"][rows.rows] = rows.query
            for join in rows.joins:
                made.say("views", rows.rows, text=f"'{join.looked.name}' has each {join.key} once: joined by it")


def _domain(made: Document, rows: DomainRows, is_target: bool, alone: bool) -> None:
    at = ("domains", rows.name)
    content: dict[str, Any] = {
        "role": "target" if is_target else "source",
        "rows": rows.rows,
        "user": sql_name(rows.user),
    }
    if alone:
        made.say(*at, "role", text="one log makes one target domain; transfer needs a source domain too")
    else:
        which = "the fewest rows: what others may help" if is_target else "more rows than the target"
        made.ask(*at, "role", text=f"it has {which}; is it the other way round?")
    made.say(*at, "user", text=rows.user_guess.reason)
    if rows.looked.sample.whole and rows.user_column.unique:
        made.ask(*at, "user", text="every row has another user: is this the right column?")
    _time(made, rows, content)
    _labels(made, rows, content)
    made.content["domains"][rows.name] = content


def _time(made: Document, rows: DomainRows, content: dict[str, Any]) -> None:
    at, time = ("domains", rows.name), rows.looked.roles.time
    if time is None or rows.time is None:
        made.ask(*at, "end", text="no column looks like a time: without one there are no histories and totals")
        return
    content["time"] = sql_name(rows.time)
    made.say(*at, "time", text=time.reason)
    if time.unit is not None:
        content["time_unit"] = time.unit
    if time.format is not None and ambiguous(time.format, rows.looked.columns[time.column].values):
        made.ask(*at, "time", text="which comes first, the day or the month? The view says it.")


def _labels(made: Document, rows: DomainRows, content: dict[str, Any]) -> None:
    at, labels = ("domains", rows.name), rows.labels()
    content["labels"] = {name: label.sql for name, label in labels.items()}
    for name, label in labels.items():
        made.say(*at, "labels", text=f"{name}: {label.reason}; {label.share:.2%} positive in the sample")
        if label.question is not None:
            made.ask(*at, "labels", text=f"{name}: {label.question}")
    nullable = [name for name, label in labels.items() if rows.looked.columns[label.column].nulls]
    if nullable:
        content["nullable"] = nullable
        made.ask(*at, "nullable", text="some are null in the sample: such rows do not count; or does null mean 0?")
    content["keep_negatives"] = 1.0
    rare = [name for name, label in labels.items() if label.share < RARE]
    hint = f"; positives of {', '.join(rare)} are rare: 0.1 keeps a tenth of the negatives" if rare else ""
    made.say(*at, "keep_negatives", text=f"all rows are kept{hint}")


def _events(made: Document, rows: DomainRows, is_domain: bool) -> None:
    if rows.time is None:
        return
    made.content["events"][rows.name] = {
        "rows": rows.rows,
        "user": sql_name(rows.user),
        "time": sql_name(rows.time),
    }
    time = rows.looked.roles.time
    if time is not None and time.unit is not None:
        made.content["events"][rows.name]["time_unit"] = time.unit
    if not is_domain:
        made.say("events", rows.name, text="a log without a label: for histories and totals only")


def _split(made: Document, tables: Tables, target: DomainRows) -> None:
    if not all(rows.time for rows in tables.domains):
        made.content["split"] = {"column": SPLIT_COLUMN}
        made.say("split", text="by a hash of the rows, 80 %, 10 % and 10 %, as not every domain has times")
        return
    found = cuts(target, tables.domains)
    if found is not None:
        made.content["split"] = {"valid": found.valid, "test": found.test}
        made.say("split", text=f"by time: 80 % and 90 % of the rows of {target.name} are earlier, by {found.source}")
        return
    made.content["split"] = {"last_share": {"valid": 0.1, "test": 0.1}}
    text = "the last rows of every user: no two moments leave rows and positives of every domain in every split"
    made.say("split", text=text)
