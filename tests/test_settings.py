"""Settings files: what is refused and in which words, `extends`, `--set`, and how files lie over one another."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PlainValidator, PositiveInt, SerializeAsAny, ValidationError

from torchrec_xd.errors import UserError
from torchrec_xd.settings import ChosenByName, Settings, load_yaml, merge, override, validate


class Optimizer(Settings):
    rate: float = 0.1
    """Step size."""
    steps: PositiveInt = 1


class Deep(Settings):
    name: Literal["deep"] = "deep"
    widths: tuple[int, ...] = ()


class Wide(Settings):
    name: Literal["wide"] = "wide"
    crosses: int = 0


KINDS = {"deep": Deep, "wide": Wide}


def model_of(content: Any) -> Any:
    if isinstance(content, Settings):
        return content
    if content["name"] not in KINDS:
        raise ValueError(f"unknown model '{content['name']}'; models are: {', '.join(KINDS)}")
    return KINDS[content["name"]].model_validate(content)


class Run(Settings):
    seed: int
    dense: Optimizer = Optimizer()
    tables: dict[str, Optimizer] = Field(default_factory=dict)
    layers: tuple[Optimizer, ...] = ()
    model: Annotated[SerializeAsAny[Any], PlainValidator(model_of), ChosenByName(KINDS.__getitem__)] = Deep()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# What a file may say


def test_values_arrive_typed(tmp_path: Path) -> None:
    text = "seed: 3\ndense: {rate: 1e-3}\ntables: {user: {steps: 1_000}}\nmodel: {name: wide, crosses: 2}\n"
    run = validate(Run, load_yaml(write(tmp_path / "run.yaml", text)), "run.yaml")
    assert run == Run(
        seed=3, dense=Optimizer(rate=0.001), tables={"user": Optimizer(steps=1000)}, model=Wide(crosses=2)
    )


def test_settings_are_frozen_and_documented() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Optimizer().rate = 2.0
    assert Optimizer.model_fields["rate"].description == "Step size."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"seed": 1, "sed": 2},
            "f: unknown key 'sed'; did you mean 'seed'?; valid keys: dense, layers, model, seed, tables",
        ),
        ({"seed": 1, "zzz": 2}, "f: unknown key 'zzz'; valid keys: dense, layers, model, seed, tables"),
        ({"seed": 1, "dense": {"rat": 2}}, "f: unknown key 'dense.rat'; did you mean 'rate'?; valid keys: rate, steps"),
        (
            {"seed": 1, "tables": {"user": {"step": 2}}},
            "f: unknown key 'tables.user.step'; did you mean 'steps'?; valid keys: rate, steps",
        ),
        (
            {"seed": 1, "layers": [{}, {"rates": 2}]},
            "f: unknown key 'layers.1.rates'; did you mean 'rate'?; valid keys: rate, steps",
        ),
        (
            {"seed": 1, "model": {"name": "wide", "widths": []}},
            "f: unknown key 'model.widths'; valid keys: crosses, name",
        ),
        ({}, "f: 'seed' is required"),
        ({"seed": "x"}, "f: 'seed': Input should be a valid integer, unable to parse string as an integer (got 'x')"),
        ({"seed": 1.5}, "f: 'seed': Input should be a valid integer, got a number with a fractional part (got 1.5)"),
        ({"seed": 1, "dense": {"steps": 0}}, "f: 'dense.steps': Input should be greater than 0 (got 0)"),
        (
            {"seed": 1, "dense": None},
            "f: 'dense': Input should be a valid dictionary or instance of Optimizer (got None)",
        ),
        (
            {"seed": None, "dense": {"steps": -1}},
            "f: 'seed': Input should be a valid integer (got None)\nf: 'dense.steps'",
        ),
    ],
)
def test_a_fault_names_key_value_rule_and_choices(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(Run, content, "f")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("value", [True, [1, True], {"a": [False]}])
def test_a_truth_value_is_no_number(value: object) -> None:
    with pytest.raises(UserError, match=rf"'dense': 'steps' must not be a boolean \(got {re.escape(repr(value))}\)"):
        validate(Run, {"seed": 0, "dense": {"steps": value}}, "run.yaml")


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UserError) as error:
        validate(Run, {"seed": "x" * 9999}, "f")
    assert len(str(error.value)) < 300
    assert str(error.value).endswith("xxx…)")


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'model': unknown model 'depe'; models are: deep, wide"):
        validate(Run, {"seed": 1, "model": {"name": "depe"}}, "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: key 'a' is written twice"),
        ("a:\n  b: 1\n  b: 1\n", "f.yaml:3: key 'b' is written twice"),
        ("a: [{b: 1, b: 2}]\n", "f.yaml:1: key 'b' is written twice"),
        ("? [x, y]\n: 1\n", "f.yaml:1: key ['x', 'y'] is a list or mapping"),
        ("a: [1\n", "f.yaml:2: not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "f.yaml:1: not valid YAML"),
        ("b: 1\na: &a {b: *a}\n", "f.yaml:2: an alias stands for a value that it is part of"),
        ("a: 1\nb: 0100\n", "f.yaml:2: 0100 begins with 0"),
        ("", "f.yaml: expected a mapping of settings, got NoneType"),
        ("- a\n", "f.yaml: expected a mapping of settings, got list"),
        ("extends:\n", "f.yaml: 'extends' names one other file, not None"),
        ("extends: [a.yaml, b.yaml]\n", "f.yaml: 'extends' names one other file, not ['a.yaml', 'b.yaml']"),
        ("extends: gone.yaml\n", "gone.yaml: no such file; files there: f.yaml"),
        ("extends: f.yaml/a.yaml\n", "a.yaml: cannot be read"),
        ("extends: ..\n", "..: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "f.yaml", text)
    with pytest.raises(UserError) as error:
        load_yaml(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_not_even_text(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match=r"f\.yaml: cannot be read"):
        load_yaml(tmp_path / "f.yaml")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml: no such file$"):
        load_yaml(tmp_path / "nowhere" / "run.yaml")


def test_yaml_merge_keys_are_no_duplicates(tmp_path: Path) -> None:
    text = "below: &below {a: 1, b: 2}\nabove:\n  <<: *below\n  b: 3\n"
    assert load_yaml(write(tmp_path / "f.yaml", text))["above"] == {"a": 1, "b": 3}


# extends


def test_extends_is_relative_to_its_own_file_and_goes_several_steps(tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", "seed: 1\ndense: {rate: 0.5, steps: 7}\nlayers: [{steps: 1}, {steps: 2}]\n")
    write(tmp_path / "runs" / "middle.yaml", "extends: ../root.yaml\ndense: {rate: 0.25}\nlayers: [{steps: 9}]\n")
    leaf = write(tmp_path / "runs" / "leaf.yaml", "extends: middle.yaml\nseed: 2\n")
    assert load_yaml(leaf) == {"seed": 2, "dense": {"rate": 0.25, "steps": 7}, "layers": [{"steps": 9}]}


@pytest.mark.parametrize("links", [("a", "a"), ("a", "b", "a"), ("a", "b", "c", "b")])
def test_extends_in_a_circle(tmp_path: Path, links: tuple[str, ...]) -> None:
    (tmp_path / "sub").mkdir()
    for child, parent in pairwise(links):
        write(tmp_path / f"{child}.yaml", f"extends: sub/../{parent}.yaml\n")
    with pytest.raises(UserError, match=rf"{links[-1]}\.yaml: 'extends' runs in a circle: .*a\.yaml -> "):
        load_yaml(tmp_path / "a.yaml")


def test_two_children_of_one_parent_are_no_circle(tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", "seed: 1\n")
    for name in ("left", "right"):
        assert load_yaml(write(tmp_path / f"{name}.yaml", "extends: root.yaml\n")) == {"seed": 1}


# merge

trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(mappings, mappings)
def test_merge_keeps_what_is_above_and_what_is_only_below(below: dict[str, Any], above: dict[str, Any]) -> None:
    before = (repr(below), repr(above))
    merged = merge(below, above)
    assert (repr(below), repr(above)) == before
    assert set(merged) == set(below) | set(above)
    assert merge(merged, above) == merged
    assert merge(below, {}) == below
    assert merge({}, above) == above
    for key, value in merged.items():
        if key not in above:
            assert value == below[key]
        elif not isinstance(above[key], dict) or not isinstance(below.get(key), dict):
            assert value == above[key]


# --set


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed=2", {"seed": 2, "dense": {"rate": 0.5}, "valid": None}),
        ("dense.steps=3", {"seed": 1, "dense": {"rate": 0.5, "steps": 3}, "valid": None}),
        ("dense={rate: 2}", {"seed": 1, "dense": {"rate": 2}, "valid": None}),
        (
            "tables.user.rate=1e-3",
            {"seed": 1, "dense": {"rate": 0.5}, "valid": None, "tables": {"user": {"rate": "1e-3"}}},
        ),
        ("valid.path=x", {"seed": 1, "dense": {"rate": 0.5}, "valid": {"path": "x"}}),
        ("seed=", {"seed": None, "dense": {"rate": 0.5}, "valid": None}),
        ("seed=[1, 2]", {"seed": [1, 2], "dense": {"rate": 0.5}, "valid": None}),
        ("seed=a=b", {"seed": "a=b", "dense": {"rate": 0.5}, "valid": None}),
        ("seed='3'", {"seed": "3", "dense": {"rate": 0.5}, "valid": None}),
    ],
)
def test_set_reads_yaml_and_makes_the_way(assignment: str, expected: dict[str, Any]) -> None:
    content = {"seed": 1, "dense": {"rate": 0.5}, "valid": None}
    assert override(content, [assignment]) == expected
    assert content == {"seed": 1, "dense": {"rate": 0.5}, "valid": None}


def test_set_applies_in_order_and_is_validated_like_a_file() -> None:
    content = override({"seed": 1}, ["dense.steps=3", "dense.steps=4", "dense.rate=1e-3"])
    assert validate(Run, content, "f").dense == Optimizer(rate=0.001, steps=4)
    with pytest.raises(UserError, match=r"f: unknown key 'dense\.stepps'; did you mean 'steps'"):
        validate(Run, override({"seed": 1}, ["dense.stepps=3"]), "f")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set seed: expected KEY.KEY=VALUE"),
        ("=3", "--set =3: expected KEY.KEY=VALUE"),
        ("dense..rate=3", "--set dense..rate=3: expected KEY.KEY=VALUE"),
        ("dense.=3", "--set dense.=3: expected KEY.KEY=VALUE"),
        ("dense=[1", "--set dense=[1: '[1' is not a valid YAML value"),
        ("dense={a: 1, a: 2}", "key 'a' is written twice"),
        ("dense.steps=0100", "--set dense.steps=0100: '0100' is not a valid YAML value: 0100 begins with 0"),
        ("dense=" + "[" * 3000, "is not a valid YAML value: values lie in one another more than 50 deep; quote it"),
        ("seed.a=3", "--set seed.a=3: 'seed' is 0, which has no keys"),
        ("dense.rate.a.b=3", "--set dense.rate.a.b=3: 'dense.rate' is 0.5, which has no keys"),
        ("layers.0.rate=3", "--set layers.0.rate=3: 'layers' is [1, 2], which has no keys"),
    ],
)
def test_a_malformed_set(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        override({"seed": 0, "dense": {"rate": 0.5}, "layers": [1, 2]}, [assignment])
    assert message in str(error.value)


@given(mappings, st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.integers() | st.booleans())
def test_what_was_set_is_found_there(content: dict[str, Any], keys: list[str], value: object) -> None:
    try:
        found: Any = override(content, [f"{'.'.join(keys)}={yaml.safe_dump(value)}"])
    except UserError as error:
        assert "which has no keys" in str(error)  # noqa: PT017 - only some of the trees have a leaf in the way
        return
    for key in keys:
        found = found[key]
    assert found == value
