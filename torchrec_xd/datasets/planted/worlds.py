"""Planted worlds: users and items with known tastes, where the best possible metrics are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.datasets.planted.clock import ClockWorld, FeedClock, HomepageClock
from torchrec_xd.datasets.planted.clock_settings import FeedClockSettings, HomepageClockSettings
from torchrec_xd.datasets.planted.days import DAYS, write_days
from torchrec_xd.datasets.planted.feed import FeedWorld
from torchrec_xd.datasets.planted.homepage import HomepageWorld
from torchrec_xd.datasets.planted.rows import World
from torchrec_xd.datasets.planted.settings import FeedSettings, HomepageSettings, PopulationSettings
from torchrec_xd.datasets.planted.writing import Written, write_world
from torchrec_xd.errors import UserError
from torchrec_xd.prepare import manifest
from torchrec_xd.prepare.manifest import Manifest
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate

SCHEMA = "schema.yaml"
PROVENANCE = "planted by torchrec-xd: drawn from a known distribution; no real user, no real item"


@dataclass(frozen=True)
class Preset:
    """Settings that make the premise of a mechanism hold, or fail, on purpose."""

    kind: str
    """Key of `KINDS`."""
    premise: str
    """One sentence."""
    settings: Mapping[str, Any]
    """What differs from the defaults of the kind of world."""


@dataclass(frozen=True)
class Kind:
    """A kind of world: its settings, how it is built, and how it is written."""

    settings: type[PopulationSettings]
    build: Callable[[Any], World | ClockWorld]
    write: Callable[..., Written]
    """(world, settings, folder, progress) -> what lies where, and the metrics of the true probabilities."""
    reports: tuple[str, ...] = (SCHEMA,)


KINDS: dict[str, Kind] = {
    "feed": Kind(FeedSettings, FeedWorld, write_world),
    "homepage": Kind(HomepageSettings, HomepageWorld, write_world),
    "feed over days": Kind(FeedClockSettings, FeedClock, write_days, (SCHEMA, DAYS)),
    "homepage over days": Kind(HomepageClockSettings, HomepageClock, write_days, (SCHEMA, DAYS)),
}

PRESETS: dict[str, Preset] = {
    "helps": Preset(
        "feed",
        "Premise holds: what users like in the source is mostly what they like in the target, and half of the features "
        "are shared.",
        {},
    ),
    "useless": Preset(
        "feed",
        "Premise fails: what users like in the source has nothing to do with what they like in the target.",
        {"agreement": 0.0},
    ),
    "hurts": Preset(
        "feed",
        "Premise is turned round: what users like in the source they rather dislike in the target; whoever copies is "
        "misled, whoever learns the sign could gain.",
        {"agreement": -0.6},
    ),
    "little_overlap": Preset(
        "feed",
        "Tastes agree, but one feature in eight is shared and half of the specific ones are noise: knowledge has to "
        "pass through schemas that hardly overlap.",
        {"overlap": 0.125},
    ),
    "many_domains": Preset(
        "feed",
        "Tastes agree, but the source rows are spread over five domains, each with features of its own.",
        {"domains": 6},
    ),
    "cold_target": Preset(
        "feed",
        "The target is new: few rows, and half of the users of both domains were never seen in it before the test.",
        {"target_rows": 6_000, "source_ratio": 45.0, "cold_users": 0.5},
    ),
    "homepage": Preset(
        "homepage",
        "Premise holds: whether an interest from the source fits the homepage depends on the scene, and on what the "
        "scene means to the item's category.",
        {"target_rows": 150_000, "source_ratio": 1.0},
    ),
    "homepage_flat": Preset(
        "homepage",
        "Premise fails: whether an interest from the source fits depends as strongly on the item's category, and not "
        "at all on the scene.",
        {"target_rows": 150_000, "source_ratio": 1.0, "scene_dependence": 0.0},
    ),
    "feed_days": Preset(
        "feed over days",
        "Premise of going on every day: users and items are born and leave, tastes turn, popularity comes and goes; "
        "what users like in the source is mostly what they like in the target.",
        {},
    ),
    "homepage_days": Preset(
        "homepage over days",
        "The same for a homepage: whether an interest from the source fits depends on the scene, which stays as it is.",
        {"target_rows": 10_000, "source_ratio": 1.0},
    ),
}


def find_preset(preset: str) -> Preset:
    """A preset by its name.

    Raises:
        UserError: there is none.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; there are: {', '.join(PRESETS)}")
    return PRESETS[preset]


def world_settings(preset: str, overrides: Mapping[str, Any]) -> PopulationSettings:
    """The settings of a preset, with others on top.

    Raises:
        UserError: unknown preset, a setting that the preset's kind of world lacks, or a value that breaks a rule.
    """
    chosen = find_preset(preset)
    kind = KINDS[chosen.kind].settings
    return validate(kind, {**chosen.settings, **overrides}, f"preset '{preset}'")


def prepare_world(preset: str, out: Path, overrides: Mapping[str, Any], progress: Callable[[str], None]) -> Manifest:
    """Write a planted world: `out/<domain>/<split>/*.parquet`, `out/schema.yaml` and `out/manifest.json`.

    Over days, a day's rows are `out/<domain>/<split>/day=NNN/*.parquet`, and `out/days.json` says what is best on each.

    `out` is complete or untouched, reused or replaced as `prepare` does it. Where it is relative, so is
    the schema's `root`: commands that use it run in the same folder.

    Args:
        preset: key of `PRESETS`.
        out: folder.
        overrides: settings on top of the preset's, see `FeedSettings`.
        progress: called with a line of text for every file.

    Raises:
        UserError: unknown preset, a setting that the preset's kind of world lacks, a value that breaks a rule, or `out`
            holds anything else.
    """
    chosen = find_preset(preset)
    kind, settings = KINDS[chosen.kind], world_settings(preset, overrides)
    name = f"world_{preset}"
    identity = manifest.identity(name, settings.meaning(), {})
    old = manifest.reusable(out, identity)
    if old is not None:
        _place_schema(load_schema(out / SCHEMA), out, out)
        progress(f"{out}: made before, with the same settings; reused")
        return old
    world = kind.build(settings)
    schema = world.schema(name)
    with manifest.replaced(out) as folder:
        domains, oracle = kind.write(world, settings, folder, progress)
        _place_schema(schema, out, folder)
        made = Manifest(
            identity=identity,
            provenance=PROVENANCE,
            notes=(chosen.premise,),
            dropped={},
            sampling={},
            cardinalities={table.name.removeprefix("t_"): table.rows for table in schema.tables()},
            domains=domains,
            oracle=oracle,
            noise_features=world.noise_features,
            reports=kind.reports,
            versions={package: version(package) for package in ("numpy", "pyarrow")},
        )
        (folder / manifest.NAME).write_text(made.model_dump_json(indent=1), encoding="utf-8")
    return made


def _place_schema(schema: Schema, root: Path, folder: Path) -> None:
    """Write the schema into `folder`, its files below `root`: the same world is reused from other folders too."""
    content = schema.model_copy(update={"root": root.as_posix()}).model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
    (folder / SCHEMA).write_text(f"# {PROVENANCE}\n{text}", encoding="utf-8")
