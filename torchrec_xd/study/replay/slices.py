"""The slices of a replay: found, put side by side, and refused where they are no history."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchrec_xd.data.contents import Contents
from torchrec_xd.data.filesystems import filesystem_of, join
from torchrec_xd.data.locations import find_files
from torchrec_xd.errors import UserError
from torchrec_xd.schema import Schema


@dataclass(frozen=True)
class Slice:
    """The rows of one stretch of time, of all domains."""

    date: str
    files: Mapping[str, str]
    """Domain to a file or folder, below the schema's root."""
    contents: Mapping[str, Contents]

    @property
    def rows(self) -> dict[str, int]:
        """Domain to its rows."""
        return {domain: contents.rows for domain, contents in self.contents.items()}

    def identity(self) -> dict[str, Any]:
        """What the slice is, as JSON knows it."""
        stamps = {domain: [asdict(s) for s in contents.stamps()] for domain, contents in self.contents.items()}
        return {"date": self.date, "files": stamps}


def find_slices(schema: Schema, given: Mapping[str, str | Sequence[str]], warm_up: int) -> list[Slice]:
    """The slices from the oldest to the newest.

    Args:
        schema: whose domains have slices, and whose root paths start from.
        given: domain to a pattern or a list.
        warm_up: slices that are not scored.

    Raises:
        UserError: a domain has none or lacks one that another has; one is there twice, out of order, or without rows;
            or the warm-up leaves none to be scored.
    """
    for domain in {**given, **schema.domains}:
        if domain not in schema.domains:
            raise UserError(f"slices: domain '{domain}' is not known; known are: {', '.join(schema.domains)}")
        if domain not in given:
            raise UserError(f"slices: domain '{domain}' has none; give its pattern or its list")
    found = {domain: _dated(domain, given[domain], schema.root) for domain in schema.domains}
    dates = sorted({date for slices in found.values() for date in slices}, key=_order(found.values()))
    for date in dates:
        lacking = [domain for domain, slices in found.items() if date not in slices]
        if lacking:
            has = next(domain for domain, slices in found.items() if date in slices)
            raise UserError(
                f"slices: domain '{lacking[0]}' has no '{date}', which '{has}' has; give all domains all slices, or "
                "take this one out"
            )
    if warm_up >= len(dates):
        raise UserError(f"warm_up: {warm_up} of {len(dates)} slices leave none to be scored; at most {len(dates) - 1}")
    slices = []
    for date in dates:
        files = {domain: found[domain][date] for domain in schema.domains}
        contents = {domain: Contents([file], schema.root) for domain, file in files.items()}
        slices.append(Slice(date, files, contents))
        for domain, rows in slices[-1].rows.items():
            if not rows:
                raise UserError(
                    f"slices.{domain}: '{date}' ({files[domain]}) has no rows; write it again, or take this slice out "
                    "of all domains"
                )
    return slices


def _dated(domain: str, given: str | Sequence[str], root: str) -> dict[str, str]:
    """Date to location, from the oldest to the newest."""
    if isinstance(given, str):
        return _matches(domain, given, root)
    found: dict[str, str] = {}
    for location in given:
        date = _date_of(location)
        if date in found:
            raise UserError(
                f"slices.{domain}: '{date}' is there twice ({found[date]}, {location}); every slice comes once"
            )
        found[date] = location
    dates, order = list(found), _order([found])
    for before, after in itertools.pairwise(dates):
        if order(before) > order(after):
            raise UserError(
                f"slices.{domain}: '{after}' comes after '{before}'; list them from the oldest to the newest"
            )
    return found


def _matches(domain: str, pattern: str, root: str) -> dict[str, str]:
    if pattern.count("*") != 1 or any(char in pattern for char in "?["):
        raise UserError(f"slices.{domain}: '{pattern}': a pattern has one '*', which stands for the date")
    _, files = find_files([pattern], root)
    start, end = filesystem_of(join(root, pattern))[1].rstrip("/").split("*")
    form = re.compile(f"{re.escape(start)}([^/]+?){re.escape(end)}(?:/.*)?")
    dates = dict.fromkeys(match[1] for file in files if (match := form.fullmatch(file)))
    return {date: pattern.replace("*", date) for date in sorted(dates, key=_order([dates]))}


def _date_of(location: str) -> str:
    parts = location.rstrip("/").split("/")
    named = [part.partition("=")[2] for part in parts if "=" in part]
    return named[-1] if named else Path(parts[-1]).stem


def _order(found: Any) -> Any:
    """A key that sorts dates: as numbers where all are, else as text."""
    return int if all(date.isdecimal() for dates in found for date in dates) else str
