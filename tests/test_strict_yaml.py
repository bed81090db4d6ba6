"""What YAML texts mean, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchrec_xd.errors import UserError
from torchrec_xd.strict_yaml import parse_with_nodes, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100", 100),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0x1F", 31),
        ("0.5", 0.5),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("12:30:45", "12:30:45"),
        ("1:30.5", "1:30.5"),
        ("2024-02-30", "2024-02-30"),
        ("2024-02-28", "2024-02-28"),
        ("0x_", "0x_"),
        ("0b101", "0b101"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("089", "089"),
        ("1e-3", "1e-3"),
        ("=", "="),
        ("'0100'", "0100"),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("!!str 5", "5"),
        ("!!float 5.0", 5.0),
        ("[&x a, *x]", ["a", "a"]),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    found = parse_yaml(text, "f")
    assert (type(found), found) == (type(value), value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: 1, l: 2}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nrows: 0100", "f:2: 0100 begins with 0, which some read as octal; leave the 0 out, or quote the text"),
        ("- -07", "f:1: -07 begins with 0"),
        ("a:\n  b: !!int abc", "f:2: 'abc' is no int"),
        ("!!int 0100", "f:1: '0100' is no int"),
        ("!!int 12:30:45", "f:1: '12:30:45' is no int"),
        ("!!float 1.5x", "f:1: '1.5x' is no float"),
        ("!!bool yes", "f:1: 'yes' is no bool"),
        ("!!timestamp 2024-02-30", "f:1: not valid YAML: could not determine a constructor for the tag"),
        ("!!binary aGk=", "f:1: not valid YAML: could not determine a constructor for the tag"),
        ("!!set {a, b}", "f:1: not valid YAML: could not determine a constructor for the tag"),
        ("9" * 41, "f:1: a whole number of 41 characters; 40 are the most"),
        ("x: 0x" + "f" * 5000, "f:1: a whole number of 5002 characters"),
        ("y: 1\nx: " + "[" * 3000, "f:2: values lie in one another more than 50 deep"),
        ("{a: " * 3000, "f:1: values lie in one another more than 50 deep"),
        ("- " * 3000, "f:1: values lie in one another more than 50 deep"),
        (BOMB, "f:5: aliases make more than 100,000 values of it"),
        (MERGES, "aliases make more than 100,000 values of it"),
        ("a: &a [1, *a]", "f:1: an alias stands for a value that it is part of"),
        ("a: *b", "f:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "not valid YAML: expected a single document in the stream: but found another document"),
        ("a: 1\nb: \x07", "f:2: not valid YAML: the character '\\x07' is not allowed in it"),
        ("a: 1\n\tb: 2", "f:2: not valid YAML: while scanning for the next token: found character '\\t'"),
        ("{a: 1, a: 2}", "f:1: key 'a' is written twice"),
        ("{1: a, 1.0: b}", "f:1: key '1.0' is written twice"),
        ("{[a]: 1}", "f:1: key ['a'] is a list or mapping"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "f")
    assert said in str(error.value)
    assert len(str(error.value)) < 200


texts = st.text(max_size=6) | st.from_regex(r"[-+0-9_.:exXob~<=ynoNTfalsetru]{1,8}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | texts


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_what_was_dumped_is_read_as_it_was(value: Any) -> None:
    for options in ({"sort_keys": False, "allow_unicode": True}, {"default_flow_style": None, "width": 120}):
        text = yaml.safe_dump(value, **options)
        meant = yaml.safe_load(text)  # the same, but for a few line breaks that PyYAML loses
        assert parse_yaml(text, "f") == meant, text


def test_nodes_know_their_lines() -> None:
    node, value = parse_with_nodes("- a\n- {b: 1}\n", "f")
    assert isinstance(node, yaml.SequenceNode)
    assert [entry.start_mark.line for entry in node.value] == [0, 1]
    assert value == ["a", {"b": 1}]


@pytest.mark.parametrize("text", ["a: !!map 5", "a: !!map x", "a: !!map [1, 2]", "!!map x"])
def test_what_is_tagged_as_a_mapping_is_one(text: str) -> None:
    with pytest.raises(UserError, match="f:1: a value is tagged as a mapping, and is none"):
        parse_yaml(text, "f")


def test_long_files_without_aliases_are_read() -> None:
    text = "tables:\n" + "- {name: t, rows: 1, dim: 4}\n" * 20_000
    assert len(parse_yaml(text, "f")["tables"]) == 20_000
