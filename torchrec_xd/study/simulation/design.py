"""What a simulation is: a world with a clock, arms that serve its users, and what they learn from; strict YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from torchrec_xd.datasets.planted.clock_settings import MAX_DAYS, ClockSettings
from torchrec_xd.datasets.planted.worlds import KINDS, PRESETS, world_settings
from torchrec_xd.settings import Settings, load_yaml, validate
from torchrec_xd.study.assignments import Assignments
from torchrec_xd.study.design import MAX_SEEDS, FilePath, Name, known

TASK = "click@target"
"""What arms rank by and are judged by, in every world with a clock."""
SET_HERE = ("days", "test_days", "seed")
"""Settings of worlds that a simulation decides."""
MOST_IMPRESSIONS = 10**8


class Arm(Settings):
    """What a share of the users gets."""

    config: FilePath | None = None
    """Run config of the model that ranks, relative to the study."""
    policy: Literal["oracle", "random"] | None = None
    """In place of it: the candidates that are really best, or any."""
    parent: str | None = None
    """The model whose run, of the same day and the same logs, this one's `init_from` is; trained before."""
    assign: Assignments = Field(default=(), alias="set")
    """`a.b=VALUE` on top of its config."""
    exploration: float | None = Field(default=None, ge=0, le=1)
    """Share of the places that are filled by chance. Default: the study's, of the oracle none."""
    shown: bool = True
    """Whether it is an arm; false for models that others only start from."""

    @model_validator(mode="after")
    def _check(self) -> Arm:
        if (self.config is None) == (self.policy is None):
            raise ValueError("give either config: FILE, a model that is trained, or policy: oracle or random")
        if self.policy is not None and (self.parent, self.assign, self.shown) != (None, (), True):
            raise ValueError(f"policy {self.policy} trains no model: remove parent, set and shown")
        if self.policy == "random" and self.exploration is not None:
            raise ValueError("policy random fills every place by chance: remove exploration")
        if not self.shown and self.exploration is not None:
            raise ValueError("shown: false serves nobody: remove exploration")
        return self


class Simulation(Settings):
    """What `torchrec-xd simulate` reads."""

    world: dict[str, Any]
    """`preset`, one of a world over days, and settings on top. Its seed is the study's, its days are those of `warmup`
    and `days`."""
    days: int = Field(default=30, ge=1, le=MAX_DAYS)
    """Days of the test."""
    warmup: int = Field(default=3, ge=1, le=MAX_DAYS)
    """Days before it, whose rows are shown by chance: what all arms learn from at first."""
    window: int = Field(default=7, ge=1, le=MAX_DAYS)
    """A model is trained each day on the rows of so many days before; with `training: continue` on the first one."""
    training: Literal["window", "continue"] = "window"
    """`window`: models are trained anew every day. `continue`: yesterday's models go on with yesterday's rows and the
    state of their optimizers (`train --continue-from`); frozen teachers go on before those that they teach, and what
    was fine-tuned goes on by itself."""
    requests: int = Field(default=2_000, ge=1)
    """Of all arms together, each day; a user belongs to one arm for good, by a hash, each arm to equally many."""
    candidates: int = Field(default=20, ge=1, le=10_000)
    """Items that could be shown for a request, drawn by popularity."""
    places: int = Field(default=5, ge=1, le=10_000)
    """Items that are shown for it."""
    exploration: float = Field(default=0.0, ge=0, le=1)
    """Share of the places that are filled by a random candidate."""
    logs: Literal["own", "shared"] = "own"
    """What arms learn from: the rows that they have shown, or those of all arms. Rows of sources are all arms' own."""
    seeds: int = Field(default=3, ge=1, le=MAX_SEEDS)
    """Seeds 0, 1, …, each with a world, users and models of its own."""
    reference: str
    """The arm that all others are compared with."""
    arms: dict[Name, Arm]
    assign: Assignments = Field(default=(), alias="set")
    """For every model."""
    samples: int = Field(default=2000, ge=100, le=1_000_000)
    """Resamples of users behind a verdict."""

    @model_validator(mode="after")
    def _check(self) -> Simulation:
        if len(self.served) < 2:
            raise ValueError(f"arms: {len(self.served)} serve users, a test has two or more (shown: false does not)")
        known("reference: arm", self.reference, self.served)
        for name in self.arms:
            self.chain(name)
        if self.places > self.candidates:
            raise ValueError(
                f"places: {self.places} of {self.candidates} candidates cannot be shown; raise candidates, or lower "
                "places"
            )
        if self.requests * self.places > MOST_IMPRESSIONS:
            raise ValueError(f"requests: more than {MOST_IMPRESSIONS:,} impressions a day (requests x places)")
        settings = self.world_of(0)
        if self.candidates > settings.items:
            raise ValueError(f"candidates: {self.candidates} of a world with {settings.items} items; lower it")
        return self

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the arms."""
        return tuple(name for name, arm in self.arms.items() if arm.shown)

    def chain(self, name: str) -> tuple[str, ...]:
        """What is trained for an arm each day, the last one is itself; nothing for a policy.

        Raises:
            ValueError: an unknown parent, or arms that start from one another.
        """
        found: list[str] = []
        at: str | None = name
        while at is not None:
            if at in found:
                raise ValueError(f"arms.{at} starts from itself: {' <- '.join(found)}")
            if self.arms[at].config is not None:
                found.append(at)
            before = self.arms[at].parent
            if before is not None:
                models = [other for other, arm in self.arms.items() if arm.config is not None]
                known(f"arms.{at}.parent: model", before, models)
            at = before
        return tuple(reversed(found))

    def exploration_of(self, name: str) -> float:
        """Share of an arm's places that are filled by chance."""
        arm = self.arms[name]
        if arm.policy == "random":
            return 1.0
        default = 0.0 if arm.policy == "oracle" else self.exploration
        return default if arm.exploration is None else arm.exploration

    def world_of(self, seed: int) -> ClockSettings:
        """The settings of a seed's world.

        Raises:
            UserError: not a preset of a world over days, or a setting that is not as it must be.
        """
        found = world_settings(str(self.world.get("preset")), self.overrides(seed))
        assert isinstance(found, ClockSettings)
        return found

    def overrides(self, seed: int) -> dict[str, Any]:
        """What is set on top of the world's preset."""
        own = {name: value for name, value in self.world.items() if name != "preset"}
        return {**own, "days": self.warmup + self.days, "seed": seed}

    @model_validator(mode="before")
    @classmethod
    def _check_world(cls, content: Any) -> Any:
        world = content.get("world") if isinstance(content, dict) else None
        if not isinstance(world, dict):
            return content
        clocks = [preset for preset in PRESETS if issubclass(KINDS[PRESETS[preset].kind].settings, ClockSettings)]
        if world.get("preset") not in clocks:
            raise ValueError(f"world: preset is {world.get('preset')!r}; worlds over days are: {', '.join(clocks)}")
        for name in SET_HERE:
            if name in world:
                raise ValueError(f"world: '{name}' is decided by the study (days, warmup, seeds); remove it")
        return content


def load_simulation(
    path: Path, seeds: int | None = None, logs: str | None = None, training: str | None = None
) -> Simulation:
    """Read what `simulate` takes; with `seeds`, `logs` and `training` in place of the file's.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    given = {
        name: value for name, value in (("seeds", seeds), ("logs", logs), ("training", training)) if value is not None
    }
    return validate(Simulation, {**load_yaml(path), **given}, str(path))
