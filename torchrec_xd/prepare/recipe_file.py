"""A recipe as it was read: its settings, and the line of every key for messages."""

from __future__ import annotations

from collections.abc import Iterator
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

    def fault(self, key: Key, text: str) -> UserError:
        """An error that names file, line and key; keys that were not written are looked for at their parent."""
        place = next((self.lines[key[:depth]] for depth in range(len(key), 0, -1) if key[:depth] in self.lines), None)
        where = self.origin if place is None else f"{self.origin}:{place}"
        return UserError(f"{where}: '{'.'.join(map(str, key))}': {text}")

    def feature_fault(self, column: str, text: str, key: str | None = None) -> UserError:
        """The same for a feature, or one of its keys."""
        place = next(i for i, feature in enumerate(self.recipe.features) if feature.column == column)
        line = self.lines.get(("features", place, key or "column"), self.lines.get(("features", place)))
        where = self.origin if line is None else f"{self.origin}:{line}"
        return UserError(f"{where}: feature '{column}'{f', {key}' if key else ''}: {text}")


def load_recipe(path: Path, assignments: list[str] | None = None) -> RecipeFile:
    """Read a recipe, with `KEY=VALUE` settings on top of it.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    content = override(load_yaml(path), assignments or [])
    recipe = validate(Recipe, content, str(path))
    root, _ = parse_with_nodes(path.read_text(encoding="utf-8"), str(path))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return RecipeFile(recipe, str(path), text, dict(_lines(root, ())) if root is not None else {})


def _lines(node: yaml.Node, key: Key) -> Iterator[tuple[Key, int]]:
    yield key, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _lines(value, (*key, name.value))
            yield (*key, name.value), name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, (*key, i))
