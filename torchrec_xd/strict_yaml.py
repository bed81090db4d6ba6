"""YAML as far as settings need it: one meaning for every value, bounded in size and depth, each fault with its line.

Plain values are read as YAML 1.2 and YAML 1.1 both read them; what only one of the two takes for a number, a date or a
truth value stays text: `yes`, `12:30:45`, `2024-02-30`, `1_000`. A file that PyYAML wrote is read as it was meant.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import masked

MAX_DEPTH = 50
MAX_NODES = 100_000
"""Values that aliases may add to a file."""
MAX_DIGITS = 40

_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
"""Tag to the plain texts that have it, and their first characters."""
_TYPES = ("bool", "null", "int", "float", "str", "seq", "map")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class _FaultError(Exception):
    """What is wrong, and in which line."""

    def __init__(self, line: int, problem: str):
        super().__init__(problem)
        self.line, self.problem = line, problem


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the rules of this file."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML declares it so

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._aliased = 0
        self._sizes: dict[yaml.Node, int] = {}
        """Nodes that are complete, with the number of values that each stands for."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        if self._depth == MAX_DEPTH:
            raise _FaultError(line, f"values lie in one another more than {MAX_DEPTH} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if node in self._sizes:  # an alias
            self._aliased += self._sizes[node]
            if self._aliased > MAX_NODES:
                raise _FaultError(line, f"aliases make more than {MAX_NODES:,} values of it")
            return node
        if node.end_mark is None:
            raise _FaultError(line, "an alias stands for a value that it is part of")
        self._sizes[node] = 1 + sum(self._sizes.get(child, 0) for child in _children(node))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node, whose text has to fit its tag, given or found."""
        if isinstance(node, yaml.ScalarNode):
            text, line, kind = node.value, node.start_mark.line + 1, node.tag.removeprefix("tag:yaml.org,2002:")
            if node.style is None and kind == "str" and _OCTAL.fullmatch(text):
                raise _FaultError(
                    line, f"{text} begins with 0, which some read as octal; leave the 0 out, or quote the text"
                )
            if kind in _PLAIN and not re.fullmatch(_PLAIN[kind][0], text):
                raise _FaultError(line, f"{text[:MAX_DIGITS]!r} is no {kind}")
            if kind == "int" and len(text) > MAX_DIGITS:
                raise _FaultError(line, f"a whole number of {len(text)} characters; {MAX_DIGITS} are the most")
        return super().construct_object(node, deep)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _mapping(loader: _Loader, node: yaml.Node) -> dict[Hashable, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _FaultError(node.start_mark.line + 1, "a value is tagged as a mapping, and is none")
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise _FaultError(line, f"key {key} is a list or mapping; keys are plain names")
        if key in seen:
            raise _FaultError(line, f"key '{key}' is written twice; keep one of the two")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],
    **{f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"] for name in _TYPES},
}
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML document.

    Raises:
        UserError: the text is no YAML, or breaks a rule of this file; names `origin` and line.
    """
    return parse_with_nodes(text, origin)[1]


def parse_with_nodes(text: str, origin: str) -> tuple[yaml.Node | None, Any]:
    """The root node of a YAML document, whose nodes know their lines, and its value; errors as of `parse_yaml`."""
    try:
        return _parsed(text)
    except _FaultError as fault:
        raise UserError(f"{origin}:{fault.line}: {fault.problem}") from None


def parse_value(text: str, origin: str) -> Any:
    """The same as `parse_yaml` for a value on the command line, which has no lines."""
    try:
        return _parsed(text)[1]
    except _FaultError as fault:
        raise UserError(
            f"{origin}: {masked(text)[:80]!r} is not a valid YAML value: {fault.problem}; quote it"
        ) from None


def _parsed(text: str) -> tuple[yaml.Node | None, Any]:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise _FaultError(mark.line + 1 if mark else 1, f"not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _FaultError(
            line, f"not valid YAML: the character {chr(error.character)!r} is not allowed in it"
        ) from None
