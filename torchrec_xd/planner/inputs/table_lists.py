"""Table lists and constraints in YAML or CSV files; errors name file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchrec_xd.errors import UserError
from torchrec_xd.planner.inputs.constraints import Constraint
from torchrec_xd.planner.inputs.tables import TableList, TableSpec
from torchrec_xd.settings import SettingsT, validate
from torchrec_xd.strict_yaml import parse_with_nodes

Entry = tuple[int, Any]
"""Line number and content."""


def load_tables(path: Path) -> TableList:
    """A table list: CSV with a header, or YAML with `tables:` (and `constraints:`), or a bare YAML list of tables.

    Raises:
        UserError: the file is not valid, a table is listed twice, or a feature has two pooling factors.
    """
    if path.suffix not in (".csv", ".yaml", ".yml"):
        raise UserError(f"{path}: a table list is a .csv or a .yaml file, not '{path.suffix}'")
    lists = {"tables": _csv_entries(path)} if path.suffix == ".csv" else _yaml_lists(path, ("tables", "constraints"))
    line_of: dict[str, int] = {}
    pooling: dict[str, tuple[float, int]] = {}
    tables = []
    for line, content in lists.get("tables", ()):
        table = _entry(TableSpec, content, path, line)
        if table.name in line_of:
            raise UserError(f"{path}:{line}: table '{table.name}' is already on line {line_of[table.name]}; rename one")
        line_of[table.name] = line
        for feature, factor in table.pooling_of().items():
            before, where = pooling.setdefault(feature, (factor, line))
            if before != factor:
                raise UserError(
                    f"{path}:{line}: feature '{feature}' has pooling {factor:g} here and {before:g} on line {where}; "
                    "write the same factor for all tables that it looks up"
                )
        tables.append(table)
    if not tables:
        raise UserError(f"{path}: holds no table; write at least one with name, rows and dim")
    constraints = tuple(_entry(Constraint, content, path, line) for line, content in lists.get("constraints", ()))
    return TableList(tables=tuple(tables), constraints=constraints)


def load_constraints(path: Path) -> tuple[Constraint, ...]:
    """A YAML file of constraints: a list, or a mapping with the key `constraints`.

    Raises:
        UserError: the file is not valid.
    """
    lists = _yaml_lists(path, ("constraints",))
    return tuple(_entry(Constraint, content, path, line) for line, content in lists.get("constraints", ()))


def _entry(kind: type[SettingsT], content: Any, path: Path, line: int) -> SettingsT:
    if not isinstance(content, dict):
        required = ", ".join(name for name, field in kind.model_fields.items() if field.is_required())
        raise UserError(f"{path}:{line}: expected a mapping with {required}, got {content!r}")
    return validate(kind, content, f"{path}:{line}")


def _read(path: Path) -> str:
    try:
        # Spreadsheet programs write a byte order mark first.
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _csv_entries(path: Path) -> Iterator[Entry]:
    reader = csv.reader(_read(path).splitlines())
    rows = ([cell.strip() for cell in row] for row in reader)
    filled = (row for row in rows if any(row))
    header = next(filled, [])
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise UserError(f"{path}:{reader.line_num}: columns written twice: {', '.join(twice)}; keep one of each")
    for row in filled:
        if len(row) != len(header):
            raise UserError(
                f"{path}:{reader.line_num}: {len(row)} cells under a header of {len(header)} ({', '.join(header)})"
            )
        yield reader.line_num, {key: cell for key, cell in zip(header, row, strict=True) if cell}


def _yaml_lists(path: Path, keys: Sequence[str]) -> dict[str, list[Entry]]:
    """The lists under `keys` in a YAML mapping. A file that is a list itself stands for the first key."""
    root, content = parse_with_nodes(_read(path), str(path))
    if isinstance(root, yaml.SequenceNode):
        return {keys[0]: _lines(root, content)}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected a list of {keys[0]}, or a mapping with the key '{keys[0]}'")
    lists = {}
    for key, node in root.value:
        line = key.start_mark.line + 1
        if key.value not in keys:
            raise UserError(f"{path}:{line}: unknown key '{key.value}'; valid keys: {', '.join(sorted(keys))}")
        if not isinstance(node, yaml.SequenceNode):
            raise UserError(f"{path}:{line}: expected a list of {key.value}, got {content[key.value]!r}")
        lists[key.value] = _lines(node, content[key.value])
    return lists


def _lines(node: yaml.SequenceNode, content: list[Any]) -> list[Entry]:
    return [(entry.start_mark.line + 1, value) for entry, value in zip(node.value, content, strict=True)]
