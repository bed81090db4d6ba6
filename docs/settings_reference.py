"""The settings reference: pages made from the settings classes themselves, so that no key can be forgotten.

`write_pages` is called by conf.py before every build; its pages are not kept in git. The test of the documentation
walks the same lists (`PAGES`) and names every key without a description.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from torchrec_xd.config import RunConfig
from torchrec_xd.datasets import LabelStepSettings, PrepareSettings
from torchrec_xd.datasets.planted.clock_settings import FeedClockSettings, HomepageClockSettings
from torchrec_xd.datasets.planted.settings import FeedSettings, HomepageSettings
from torchrec_xd.models import MODELS
from torchrec_xd.planner import Cluster, TableList
from torchrec_xd.prepare.recipe import Recipe
from torchrec_xd.schema import Schema
from torchrec_xd.settings import ChosenByName
from torchrec_xd.study.design import Ablation, Study
from torchrec_xd.study.replay.design import Replay
from torchrec_xd.study.simulation.design import Simulation


@dataclass(frozen=True)
class Section:
    """The keys of one settings class."""

    title: str
    settings: type[BaseModel]
    text: str = ""
    """What stands above its keys."""
    prefix: str = ""
    """Dotted path in front of every key."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Key to the sentence that stands in place of the keys below it, which another page lists."""


@dataclass(frozen=True)
class Key:
    """One key of a settings file."""

    path: str
    type: str
    default: str
    description: str


RUN = Section(
    "Run configs",
    RunConfig,
    "What `torchrec-xd train CONFIG` reads.",
    elsewhere={
        "schema": "Its keys: [](schema.md).",
        "model": "Its keys: [](models.md).",
    },
)

PAGES: dict[str, tuple[str, tuple[Section, ...]]] = {
    "run": ("Run configs", (RUN,)),
    "schema": ("Schema files", (Section("Schema files", Schema, "What the columns of the Parquet files mean."),)),
    "models": (
        "Models",
        tuple(Section(f"`{name}`", spec.settings, prefix="model.") for name, spec in MODELS.items()),
    ),
    "recipe": (
        "Recipes",
        (Section("Recipes", Recipe, "From raw logs to rows: what `torchrec-xd prepare RECIPE` reads."),),
    ),
    "data_sets": (
        "Data sets",
        (
            Section("Complete Journey", PrepareSettings, "`torchrec-xd prepare NAME --set KEY=VALUE`."),
            Section(
                "Planted worlds: feeds",
                FeedSettings,
                "`torchrec-xd prepare world --preset PRESET --set KEY=VALUE`, every preset whose kind is feed. A "
                "preset changes some of these defaults ([](../data.md#planted-worlds)).",
            ),
            Section(
                "Planted worlds: homepages",
                HomepageSettings,
                "The same for the presets `homepage` and `homepage_flat`.",
            ),
            Section(
                "Planted worlds over days: feeds",
                FeedClockSettings,
                "The same for the preset `feed_days` ([](../data.md#worlds-with-a-clock)).",
            ),
            Section(
                "Planted worlds over days: homepages",
                HomepageClockSettings,
                "The same for the preset `homepage_days`.",
            ),
            Section("Interest labels for your own logs", LabelStepSettings, "What `torchrec-xd label CONFIG` reads."),
        ),
    ),
    "studies": (
        "Studies",
        (
            Section("`compare` and `tune`", Study),
            Section("`ablate`", Ablation),
            Section("`replay`", Replay, "How to use it: [](../replay.md)."),
            Section("`simulate`", Simulation),
        ),
    ),
    "planner": (
        "Planner files",
        (
            Section("Cluster profiles", Cluster, "What `torchrec-xd plan make --cluster` reads."),
            Section("Table lists", TableList, "What `torchrec-xd plan make --tables` reads."),
        ),
    ),
}
"""File name to title and sections of every page."""


def write_pages(folder: Path) -> None:
    """Write every page into `folder`; a page that has not changed is left alone, so that it is not built again."""
    folder.mkdir(exist_ok=True)
    for name, (title, sections) in PAGES.items():
        text, path = page(title, sections), folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def page(title: str, sections: tuple[Section, ...]) -> str:
    """A page as Markdown."""
    lines = [f"# {title}", ""]
    for section in sections:
        if len(sections) > 1:
            lines += [f"## {section.title}", ""]
        lines += [" ".join(filter(None, [inspect.getdoc(section.settings), section.text])), ""]
        for key in keys(section):
            meaning = key.description.replace("\n", " ") or "–"
            lines += [f"`{key.path}`", f": {meaning}\\", f"  Type: {key.type}; {key.default}.", ""]
    return "\n".join(lines)


def keys(section: Section) -> list[Key]:
    """The keys of a section, those of nested settings with their dotted paths."""
    return list(_keys(section.settings, section.prefix, None, section.elsewhere))


def _keys(settings: type[BaseModel], prefix: str, given: BaseModel | None, elsewhere: dict[str, str]) -> Iterator[Key]:
    """`given` is the default object that a key above holds, if any: its values are the defaults."""
    for name, info in settings.model_fields.items():
        path, annotation = f"{prefix}{info.alias or name}", info.annotation
        default = PydanticUndefined if given is None else getattr(given, name)
        default = info.default if default is PydanticUndefined else default
        below = nested(annotation)
        description = _description(info, below)
        if path in elsewhere or any(isinstance(mark, ChosenByName) for mark in info.metadata):
            yield Key(path, "mapping", _default(info, default), f"{description} {elsewhere.get(path, '')}".strip())
        elif below is None:
            yield Key(path, type_text(annotation, info.metadata), _default(info, default), description)
        else:
            kind, suffix = below
            if suffix or not isinstance(default, BaseModel):
                yield Key(path, type_text(annotation, info.metadata), _default(info, default), description)
            yield from _keys(kind, f"{path}{suffix}.", default if isinstance(default, BaseModel) else None, elsewhere)


def _description(info: FieldInfo, below: tuple[type[BaseModel], str] | None) -> str:
    """A key's own description, or that of the settings class that it holds."""
    if info.description is None and get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1:
        return "Chooses this model."  # the key `name` of a model's settings
    return info.description or (inspect.getdoc(below[0]) if below is not None else None) or ""


def nested(annotation: Any) -> tuple[type[BaseModel], str] | None:
    """The settings class inside a type, and what a dotted path has for the mapping or list around it; None without."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    arguments = [argument for argument in get_args(annotation) if argument not in (NoneType, Ellipsis)]
    for argument in arguments:
        found = nested(argument)
        if found is not None:
            around = {dict: ".NAME", tuple: "[]", list: "[]"}.get(get_origin(annotation), "")
            return found[0], around + found[1]
    return None


PLAIN: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "true or false",
    str: "string",
    Path: "path",
    Any: "any value",
}


def type_text(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in words, for people who write YAML."""
    return _plain_type(annotation) + _bounds(metadata)


def _plain_type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    found = str(annotation)
    if annotation in PLAIN:
        found = PLAIN[annotation]
    elif origin is Annotated:
        found = type_text(arguments[0], arguments[1:])
    elif origin is Literal:
        found = " or ".join(f"`{choice}`" for choice in arguments)
    elif origin in (Union, UnionType):
        texts = [_plain_type(argument) for argument in arguments if argument is not NoneType]
        found = " or ".join([*texts, *(["null"] if NoneType in arguments else [])])
    elif origin is dict:
        found = f"mapping of {_plain_type(arguments[0])} to {_plain_type(arguments[1])}"
    elif origin in (tuple, list):
        inner = _plural(_plain_type(arguments[0]))
        found = f"list of {inner}" if Ellipsis in arguments else f"list of {len(arguments)} {inner}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = "mapping"
    return found


def _plural(text: str) -> str:
    word, *rest = text.split(" ")
    return " ".join([f"{word}s" if word in (*PLAIN.values(), "mapping", "list") else word, *rest])


BOUNDS: dict[type, Callable[[Any], str]] = {
    Gt: lambda bound: f"> {bound.gt}",
    Ge: lambda bound: f"≥ {bound.ge}",
    Lt: lambda bound: f"< {bound.lt}",
    Le: lambda bound: f"≤ {bound.le:,}",
    MinLen: lambda bound: f"at least {bound.min_length}",
}


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    marks = [mark for entry in metadata for mark in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    found = [BOUNDS[type(mark)](mark) for mark in marks if type(mark) in BOUNDS]
    return f" ({', '.join(found)})" if found else ""


def _default(info: FieldInfo, value: Any) -> str:
    if value is PydanticUndefined and info.default_factory in (dict, list, tuple):
        value = info.default_factory()  # type: ignore[call-arg, misc]
    if value is PydanticUndefined:
        return "required" if info.is_required() else "default: depends on the machine"
    return f"default: `{_value_text(value)}`"


def _value_text(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_value_text(inner)}' for name, inner in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
