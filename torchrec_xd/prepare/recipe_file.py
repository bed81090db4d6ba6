"""A recipe as it was read: its settings, and the line of every key for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from torchrec_xd.errors import UserError
from torchrec_xd.prepare.recipe import Recipe
from torchrec_xd.settings import load_yaml, override, validate
from torchrec_xd.strict_yaml import parse_with_nodes

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class RecipeFile:
    """A recipe and where it was written."""

    recipe: Recipe
    origin: str
    """File name, for messages."""
    text: str = ""
    """The file as it was written, with settings of the command line applied."""
    lines: dict[Key, int] = field(default_factory=dict)
    """Path of every key, as `("features", 3, "value")`, to its line."""

    warnings: list[str] | None = None
    """Where faults go that a sample of the data may have and the whole has not; None where all data are read."""

    def fault(self, key: Key, text: str) -> UserError:
        """An error that names file, line and key; keys that were not written are looked for at their parent."""
        return UserError(f"{where(self.origin, self.lines, key)}: '{'.'.join(map(str, key))}': {text}")

    def unknown(self, key: Key, name: str, what: str, known: Iterable[str]) -> UserError:
        """An error for a name that is not there."""
        return self.fault(key, choices(name, what, known))

    def raise_for_all_rows(self, error: UserError) -> None:
        """Raise an error, or keep it as a warning where a sample is read."""
        if self.warnings is None:
            raise error
        self.warnings.append(str(error))

    def feature_fault(self, column: str, text: str, key: str | None = None) -> UserError:
        """The same for a feature, or one of its keys, as `total.events`."""
        place = next(i for i, feature in enumerate(self.recipe.features) if feature.column == column)
        at = where(self.origin, self.lines, ("features", place, *(key or "column").split(".")))
        return UserError(f"{at}: feature '{column}'{f', {key}' if key else ''}: {text}")


def where(origin: str, lines: Mapping[Key, int], key: Key) -> str:
    """File and line of a key; one that was not written is at its parent."""
    line = next((lines[key[:depth]] for depth in range(len(key), 0, -1) if key[:depth] in lines), None)
    return origin if line is None else f"{origin}:{line}"


def choices(name: str, what: str, known: Iterable[str]) -> str:
    """That a name is not among those that are known, and the nearest one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"'{name}' is not {what}{hint}; there are: {', '.join(names) or 'none'}"


def load_recipe(path: Path, assignments: list[str] | None = None) -> RecipeFile:
    """Read a recipe, with `KEY=VALUE` settings on top of it.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    content = override(load_yaml(path), assignments or [])
    root, _ = parse_with_nodes(path.read_text(encoding="utf-8"), str(path))
    lines = dict(_lines(root, ())) if root is not None else {}
    recipe = validate(Recipe, content, str(path), lambda key: where(str(path), lines, key))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return RecipeFile(recipe, str(path), text, lines)


def _lines(node: yaml.Node, key: Key) -> Iterator[tuple[Key, int]]:
    yield key, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _lines(value, (*key, name.value))
            yield (*key, name.value), name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, (*key, i))
