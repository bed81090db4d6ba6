"""Strict settings: the pydantic base of every settings object, and YAML files that may extend one another."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from torchrec_xd.errors import UserError
from torchrec_xd.given_paths import local_path, masked
from torchrec_xd.strict_yaml import parse_value, parse_yaml

LocalPath = Annotated[Path, AfterValidator(local_path)]
"""A path on this machine."""
MAX_FP32 = 3e38
"""Larger settings would be infinite where kernels read them, as fp32."""
_INT64 = range(-(2**63), 2**63)
_SHOWN = 120
"""Characters of a wrong value that a message shows."""


class Settings(BaseModel):
    """Base of every settings object: unknown keys are errors, objects are frozen, fields are documented."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, content: Any) -> Any:
        """Python takes true and false for the numbers 1 and 0, also in lists and mappings of numbers."""
        for name, field in cls.model_fields.items():
            value = content.get(field.alias or name) if isinstance(content, dict) else None
            if _holds_truth_value(value) and _is_plain(field.annotation) and "bool" not in str(field.annotation):
                raise ValueError(f"'{name}' must not be a boolean (got {value!r}); quote it if meant as text")
        return content

    @model_validator(mode="after")
    def _no_integers_beyond_64_bits(self) -> Settings:
        """Nothing below Python holds larger ones."""
        for name, field in type(self).model_fields.items():
            if any(value not in _INT64 for value in _integers(getattr(self, name))):
                raise ValueError(f"'{field.alias or name}' holds a number beyond 64 bits")
        return self


def _integers(value: Any) -> Iterator[int]:
    """The integers of a setting, also in lists and mappings; settings within settings look after themselves."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _integers(inner)


def _holds_truth_value(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_holds_truth_value(inner) for inner in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _is_plain(annotation: Any) -> bool:
    """Whether a field's type is made of plain types alone, and takes not just any value.

    Settings within settings look after themselves.
    """
    return "Any" not in str(annotation) and not _models_in(annotation)


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with `extends: OTHER` (relative to the file) merged beneath it.

    Raises:
        UserError: the file is missing or no local path, is no mapping, is not valid YAML, holds a key twice, or extends
            itself.
    """
    return _load_yaml(path, ())


def _load_yaml(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    local_path(path)
    if path.resolve() in children:
        raise UserError(f"{path}: 'extends' runs in a circle: {' -> '.join(str(p) for p in (*children, path))}")
    try:
        with path.open(encoding="utf-8") as stream:
            content = parse_yaml(stream.read(), str(path))
    except FileNotFoundError:
        others = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; files there: {', '.join(others)}" if others else ""
        raise UserError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
    if "extends" not in content:
        return content
    parent = content.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"{path}: 'extends' names one other file, not {parent!r}")
    return merge(_load_yaml(path.parent / parent, (*children, path.resolve())), content)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping; anything that is not a mapping is replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def override(content: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`content` with each `a.b=value` applied; the value is read as YAML.

    Raises:
        UserError: an assignment without `=` or with an empty key, one whose value is not valid YAML, or one that walks
            through a value that is no mapping.
    """
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        keys = dotted.split(".")
        if not equals or not all(keys):
            raise UserError(f"--set {masked(assignment)}: expected KEY.KEY=VALUE, for example trainer.epochs=2")
        value = parse_value(text, f"--set {masked(assignment)[:_SHOWN]}")
        walked: Any = content
        for depth, key in enumerate(keys):
            if not isinstance(walked, dict):
                raise UserError(
                    f"--set {masked(assignment)}: '{'.'.join(keys[:depth])}' is {_shown(walked)}, which has no keys"
                )
            walked = {} if walked.get(key) is None else walked[key]
        for key in reversed(keys):
            value = {key: value}
        content = merge(content, value)
    return content


def validate(
    kind: type[SettingsT],
    content: dict[str, Any],
    origin: str,
    where: Callable[[tuple[str | int, ...]], str] | None = None,
) -> SettingsT:
    """`content` as a settings object; `where` gives file and line of a key.

    Raises:
        UserError: one line per fault: file, key, value, the rule, and for an unknown key the nearest valid ones.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = error.errors()
        raise UserError(
            "\n".join(f"{where(each['loc']) if where else origin}: {_fault(kind, content, each)}" for each in faults)
        ) from None


def _fault(kind: type[BaseModel], content: Any, fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location) or "(whole file)"
    if fault["type"] == "extra_forbidden":
        valid = _valid_keys(kind, location[:-1], content)
        near = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        choices = f"; valid keys: {', '.join(valid)}" if valid else ""
        return f"unknown key '{key}'{hint}{choices}"
    if fault["type"] == "missing":
        return f"'{key}' is required"
    message = fault["msg"].removeprefix("Value error, ")
    return f"'{key}': {message}" + ("" if isinstance(fault["input"], dict) else f" (got {_shown(fault['input'])})")


def _shown(value: object) -> str:
    text = masked(repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@dataclass(frozen=True)
class ChosenByName:
    """Marks a field whose settings class depends on the key `name` in it: for messages that list the valid keys."""

    find: Callable[[str], type[BaseModel]]


def _valid_keys(kind: type[BaseModel], location: list[str], content: Any) -> list[str]:
    """The keys that the settings object at `location` of `content` knows."""
    models: list[type[BaseModel]] = [kind]
    for part in location:
        content = content.get(part) if isinstance(content, dict) else None
        models = [found for model in models for found in _models_below(model, part, content)] or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _models_below(model: type[BaseModel], part: str, content: Any) -> list[type[BaseModel]]:
    field = {field.alias or name: field for name, field in model.model_fields.items()}.get(part)
    if field is None:
        return []
    for chosen in field.metadata:
        if isinstance(chosen, ChosenByName):
            return [chosen.find(content["name"])]  # it was found before, or its other keys would not be at fault
    return _models_in(field.annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]
