"""What a replay is made of: slices of time, models, and policies of training; read from YAML, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.significance import Metric
from torchrec_xd.settings import Settings, load_yaml, validate
from torchrec_xd.study.assignments import Assignments, given_on_top
from torchrec_xd.study.design import MAX_SEEDS, FilePath, Name, known, samples_needed

Policy = Literal["never", "scratch", "incremental", "incremental_without_growth", "incremental_without_state"]
"""How models are trained as slices come."""


class ReplayModel(Settings):
    """A config under a name."""

    config: FilePath
    """Run config, relative to the replay's file."""
    parent: str | None = None
    """The model whose run of the same slice this one's `init_from` is; trained before it."""
    assign: Assignments = Field(default=(), alias="set")
    """`a.b=VALUE` on top of its config."""
    continued: Assignments = Field(default=(), alias="set_continued")
    """The same on top of that, for runs that go on from the one before."""
    shown: bool = True
    """Whether it is reported; false for models that others only start from."""


class Replay(Settings):
    """What `torchrec-xd replay` reads."""

    schema_file: FilePath | None = Field(default=None, alias="schema")
    """Schema of the data, relative to the replay's file; the files that it names are not read, `slices` are."""
    world: dict[str, Any] | None = None
    """A planted world with days in place of it: `preset`, and settings on top; made in data/worlds/REPLAY where it is
    not there."""
    slices: dict[str, str | tuple[str, ...]] | None = None
    """Domain to its slices, files or folders below the schema's `root`: a pattern with one `*`, which is the date
    (`target/train/day=*`), or a list from the oldest to the newest, dated by `…=DATE` in the path, else by the last
    name. All domains have the same dates, numbers or text that sorts. Default: the days of the world."""
    warm_up: PositiveInt
    """The first so many slices are trained on together before the first one is scored."""
    policies: tuple[Policy, ...] = Field(default=("never", "scratch", "incremental"), min_length=1)
    """Compared side by side. `never`: trained on the warm-up, then left as it is; `scratch`: for every slice trained
    anew on the slices before it; `incremental`: goes on with the slice before it alone; `incremental_without_growth`:
    the same, and tables stay as large as after the warm-up; `incremental_without_state`: the same as `incremental`, and
    the optimizers' states begin anew."""
    reference: Policy = "incremental"
    """The policy that all others are compared with."""
    window: PositiveInt | None = None
    """`scratch` trains on the last so many slices. Default: on all so far."""
    grows: tuple[str, ...] = ()
    """Features whose tables grow: every slice they have a row for each id up to the largest one so far, and larger ids
    are left out (`hash: drop`). Tables with a `vocabulary` grow by themselves, others are as the schema says."""
    models: dict[Name, ReplayModel] = Field(min_length=1)
    seeds: int = Field(default=3, ge=1, le=MAX_SEEDS)
    """Seeds 0, 1, …, of every model under every policy."""
    metrics: tuple[Metric, ...] = Field(default=("auc", "logloss"), min_length=1)
    """On which verdicts are given."""
    samples: int = Field(default=2000, ge=1, le=1_000_000)
    """Resamples of slices and seeds behind an interval."""
    block: PositiveInt | None = None
    """Slices in a row that are resampled together. Default: the cube root of how many are compared."""
    assign: Assignments = Field(default=(), alias="set")
    """For every model."""

    @model_validator(mode="after")
    def _check(self) -> Replay:
        if (self.schema_file is None) == (self.world is None):
            raise ValueError("give either schema: FILE, with slices, or world: {preset: NAME, …}")
        if self.schema_file is not None and self.slices is None:
            raise ValueError("slices: {DOMAIN: PATTERN, …} says where the slices of each domain of the schema lie")
        if self.world is not None and (self.slices is not None or not isinstance(self.world.get("preset"), str)):
            raise ValueError("world: {preset: NAME, SETTING: VALUE, …} has a preset, and its days are the slices")
        for name in self.models:
            self.ancestors(name)
        if not any(model.shown for model in self.models.values()):
            raise ValueError("models: all have shown: false; one at least is reported")
        repeated = [policy for policy in self.policies if self.policies.count(policy) > 1]
        if repeated:
            raise ValueError(f"policies: '{repeated[0]}' is there twice")
        known("reference: policy", self.reference, self.policies)
        comparisons = len(self.metrics) * (len(self.policies) - 1)
        if self.samples < (least := samples_needed(comparisons)):
            raise ValueError(
                f"samples: {self.samples} resamples cannot decide {comparisons} comparisons (Holm's correction); "
                f"at least {least} can"
            )
        return self

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The models that a model's runs start from, the nearest first.

        Raises:
            UserError: an unknown name, or models that start from one another.
        """
        found: list[str] = []
        while (before := self.models[name].parent) is not None:
            known(f"models.{name}.parent: model", before, self.models)
            if before in found or before == name:
                raise UserError(f"models.{before} starts from itself")
            found.append(before)
            name = before
        return tuple(found)

    def in_order(self) -> list[str]:
        """The models, each after the one that it starts from."""
        return sorted(self.models, key=lambda name: len(self.ancestors(name)))


def load_replay(path: Path, seeds: int | None = None, assign: Assignments = ()) -> Replay:
    """Read what `replay` takes.

    Args:
        path: the file.
        seeds: in place of the file's.
        assign: on top of every config.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    replay = validate(Replay, load_yaml(path), str(path))
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UserError(f"--seeds {seeds}: 1 to {MAX_SEEDS}")
    given = given_on_top(assign)
    models = {
        name: model.model_copy(update={"assign": (*model.assign, *given), "continued": (*model.continued, *given)})
        for name, model in replay.models.items()
    }
    return replay.model_copy(update={"seeds": seeds or replay.seeds, "models": models})
