"""A recipe in the making: its content, comments on its keys, and both as YAML."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml

WIDTH = 120
Key = tuple[str | int, ...]


@dataclass
class Document:
    """The content of a recipe, and comments: path of a key, as `("features", 3)`, to what stands above it."""

    content: dict[str, Any] = field(default_factory=dict)
    comments: dict[Key, list[str]] = field(default_factory=dict)

    def say(self, *key: str | int, text: str) -> None:
        """Put a comment above a key, or with `"end"` below all keys of a mapping or list."""
        self.comments.setdefault(key, []).append(text)

    def ask(self, *key: str | int, text: str) -> None:
        """The same for what could not be guessed."""
        self.say(*key, text=f"QUESTION: {text}")

    def feature(self, content: dict[str, Any], reason: str, question: str | None = None) -> None:
        """Add a feature."""
        place = len(self.content["features"])
        self.say("features", place, text=reason)
        if question is not None:
            self.ask("features", place, text=question)
        self.content["features"].append(content)

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return sum("QUESTION:" in line for lines in self.comments.values() for line in lines)

    def text(self) -> str:
        """The YAML."""
        return "\n".join(_mapping(self.content, self.comments, (), "")) + "\n"


def _mapping(content: dict[str, Any], comments: dict[Key, list[str]], key: Key, indent: str) -> list[str]:
    lines = []
    for name, value in content.items():
        at = (*key, name)
        lines += _comment(comments.get(at, []), indent)
        lines += _entry(f"{indent}{flow(name)}:", value, comments, at, indent)
    return lines + _comment(comments.get((*key, "end"), []), indent)


def _entry(start: str, value: Any, comments: dict[Key, list[str]], at: Key, indent: str) -> list[str]:
    below = any(key[: len(at)] == at and len(key) > len(at) for key in comments)
    if isinstance(value, str) and "\n" in value and _is_printable(value):
        return [f"{start} |-", *(f"{indent}  {line}" for line in value.split("\n"))]
    line = f"{start} {flow(value)}"
    inner = value.values() if isinstance(value, dict) else ()
    long = len(line) > WIDTH or (len(at) == 1 and any(isinstance(each, dict) for each in inner))
    if isinstance(value, dict) and value and (below or long):
        return [start, *_mapping(value, comments, at, f"{indent}  ")]
    if isinstance(value, list) and value and (below or (long and isinstance(value[0], dict))):
        return [start, *_items(value, comments, at, indent)]
    return [line]


def _items(values: list[Any], comments: dict[Key, list[str]], key: Key, indent: str) -> list[str]:
    lines = []
    for i, value in enumerate(values):
        lines += _comment(comments.get((*key, i), []), indent)
        line = f"{indent}- {flow(value)}"
        if len(line) > WIDTH and isinstance(value, dict):
            inner = _mapping(value, comments, (*key, i), f"{indent}  ")
            lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        else:
            lines.append(line)
    return lines + _comment(comments.get((*key, "end"), []), indent)


def flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _is_printable(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text) and not text.startswith((" ", "\n"))


def _comment(lines: list[str], indent: str) -> list[str]:
    found = []
    for line in lines:
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        wrapped = textwrap.wrap(shown, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
        found += [f"{indent}# {part}" for part in wrapped]
    return found
