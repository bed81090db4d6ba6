"""What a study compares: data sets, models and seeds; read from YAML, strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.significance import Metric
from torchrec_xd.given_paths import local_path
from torchrec_xd.settings import Settings, load_yaml, validate
from torchrec_xd.study.assignments import Assignments, OnTop, given_on_top


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.+=-]*", name):
        raise ValueError("names become folders: letters, digits and _ . + = - only, no dash or dot first")
    return name


def _path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path has no null characters")
    return local_path(path)


FilePath = Annotated[Path, AfterValidator(_path)]
Name = Annotated[str, AfterValidator(_folder_name)]
MAX_SEEDS = 1000
LEVEL = 0.05
"""Significance level of verdicts: the chance of any wrong "better" or "worse" on a data set where no model differs."""


def samples_needed(comparisons: int) -> int:
    """Resamples without which no verdict is possible: 2 / (samples + 1) is the smallest p-value there is."""
    return round(2 * comparisons / LEVEL)


class StudyData(Settings):
    """A data set, and what is predicted on it."""

    task: str
    """`<label>@<domain>`: its test rows are what all models are compared on."""
    schema_file: FilePath | None = Field(default=None, alias="schema")
    """Schema file in place of the one that each config names; relative to the study."""
    world: dict[str, Any] | None = None
    """A planted world in place of it: `preset`, and settings on top; made in data/worlds/NAME where it is not there."""
    assign: dict[str, Assignments] = Field(default_factory=dict, alias="set")
    """Model to assignments that hold on these data only."""
    tuned_on: str | None = None
    """Another data set of the study, whose tuned settings are used here too: `tune` then searches on that one alone."""

    @model_validator(mode="after")
    def _check(self) -> StudyData:
        if "@" not in self.task:
            raise ValueError(f"task: '{self.task}' is no task; write LABEL@DOMAIN")
        if self.world is not None and (self.schema_file is not None or not isinstance(self.world.get("preset"), str)):
            raise ValueError("world: {preset: NAME, SETTING: VALUE, …} has a preset, and stands in place of `schema`")
        return self


class Range(Settings):
    """Where `tune` looks for a value: between two numbers, or among choices."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Evenly in the logarithm."""
    choices: tuple[Any, ...] | None = None
    """Values to choose from, in place of `low` and `high`."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or not self.choices:
                raise ValueError("choices: [A, B, …] stands alone, with one value or more")
        elif self.low is None or self.high is None or self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("give low and high, low < high (0 < low where log: true), or choices: [A, B, …]")
        return self


class StudyModel(Settings):
    """A config under a name, or the scores of a model from outside."""

    config: FilePath | None = None
    """Run config, relative to the study."""
    scores: str | None = None
    """In place of it: Parquet file with the scores of a model that was trained elsewhere; relative to the study, with
    {data} and {seed} in place of their names where each has its own."""
    data: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The data sets that it is compared on. Default: all."""
    parent: str | None = None
    """The model whose run, of the same data and seed, this one's `init_from` is; trained before."""
    domains: Literal["all", "target", "source"] | None = None
    """What it reads on every data set: all domains, the one of the task, or the first that is none of the schema's
    targets. Default: as in its config."""
    assign: Assignments = Field(default=(), alias="set")
    """`a.b=VALUE` on top of its config."""
    space: dict[str, Range] = Field(default_factory=dict)
    """What `tune` may change in it, besides the study's `space`."""
    shown: bool = True
    """Whether it is compared; false for models that others only start from."""

    @model_validator(mode="after")
    def _check(self) -> StudyModel:
        if (self.config is None) == (self.scores is None):
            raise ValueError("give either config: FILE, which is trained, or scores: FILE, of a model from outside")
        if self.scores is None:
            return self
        fields = type(self).model_fields
        foreign = [fields[name].alias or name for name in sorted(self.model_fields_set - {"scores", "data"})]
        if foreign:
            raise ValueError(f"a model with scores is not trained here: remove {', '.join(foreign)}; it may have data")
        for name in re.findall("{(.*?)}", self.scores):
            known("scores: placeholder", name, ("data", "seed"))
        return self

    def on(self, data: str) -> bool:
        """Whether it is compared on a data set."""
        return self.data is None or data in self.data


class Matrix(Settings):
    """The keys of all kinds of studies: data x seeds x models."""

    data: dict[Name, StudyData] = Field(min_length=1)
    seeds: int = Field(default=3, ge=1, le=MAX_SEEDS)
    """Seeds 0, 1, … of every model on every data set."""
    models: dict[Name, StudyModel] = Field(min_length=1)
    metrics: tuple[Metric, ...] = Field(default=("auc", "gauc", "logloss"), min_length=1)
    """On which verdicts are given."""
    samples: int = Field(default=2000, ge=1, le=1_000_000)
    """Resamples of users and seeds behind an interval."""
    assign: Assignments = Field(default=(), alias="set")
    """For every model."""
    space: dict[str, Range] = Field(default_factory=dict)
    """What `tune` may change, `a.b` of the configs."""

    @model_validator(mode="after")
    def _check_names(self) -> Matrix:
        for name, model in self.models.items():
            self.ancestors(name)
            for label in model.data or ():
                known(f"models.{name}.data: data set", label, self.data)
        for label, data in self.data.items():
            for name in data.assign:
                known(f"data.{label}.set: model", name, self.models)
            self._check_trained(f"data.{label}.set", label, data.assign)
            for name in self.trained(label):
                self._check_trained(f"models.{name}.parent", label, self.ancestors(name)[:1])
            if data.tuned_on is not None:
                known(f"data.{label}.tuned_on: data set", data.tuned_on, self.data)
                self._check_trained(f"data.{label}.tuned_on", data.tuned_on, self.trained(label))
        return self

    def _check_trained(self, key: str, data: str, models: Iterable[str]) -> None:
        trained = self.trained(data)
        for name in models:
            if name not in trained:
                raise ValueError(f"{key}: '{name}' is not trained on '{data}'; trained there: {', '.join(trained)}")

    def trained(self, data: str) -> list[str]:
        """The models that are trained on a data set, each after the one that it starts from."""
        found = [name for name, model in self.models.items() if model.config is not None and model.on(data)]
        return sorted(found, key=lambda name: len(self.ancestors(name)))

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The models that a model's run goes back to, the nearest first.

        Raises:
            UserError: an unknown name, or models that start from one another.
        """
        found: list[str] = []
        while (before := self.models[name].parent) is not None:
            known(f"models.{name}.parent: model", before, self.models)
            if before in found:
                raise UserError(f"models.{before} starts from itself: {' <- '.join(found)}")
            found.append(before)
            name = before
        return tuple(found)


class Study(Matrix):
    """What `torchrec-xd compare` reads."""

    reference: str
    """The model that all others are compared with."""
    on_top: OnTop = Field(default=(), exclude=True)
    """Never written: what the command line assigns (`--set`), on top of everything else."""

    @model_validator(mode="after")
    def _check(self) -> Study:
        known("reference: model", self.reference, self.models)
        if not self.models[self.reference].shown:
            raise ValueError(f"reference '{self.reference}' has shown: false; it is compared with all others")
        absent = [label for label in self.data if not self.models[self.reference].on(label)]
        if absent:
            raise ValueError(f"reference '{self.reference}' is not on {', '.join(absent)}; it has to be on all data")
        most = max(sum(model.shown and model.on(label) for model in self.models.values()) for label in self.data)
        comparisons = len(self.metrics) * (most - 1)
        if self.samples < (least := samples_needed(comparisons)):
            raise ValueError(
                f"samples: {self.samples} resamples cannot decide {comparisons} comparisons (Holm's correction); "
                f"at least {least} can, twice as many are better"
            )
        return self


class Ablation(Matrix):
    """What `torchrec-xd ablate` reads: a model, and switches that are thrown one at a time."""

    base: str
    """The whole model, the reference."""
    switches: dict[Name, Annotated[dict[str, Assignments], Field(min_length=1)]] = Field(min_length=1)
    """Switch to its assignments: {MODEL: [a.b=VALUE, …]}, of the base and of models that it starts from."""

    def study(self) -> Study:
        """The study of all variants against the base.

        A switch that changes a model changes all that start from it: each gets a variant, `MODEL-SWITCH`; that of the
        base is called like the switch and is the one that is compared.

        Raises:
            UserError: a switch names a model that the base does not start from, or has the name of a model.
        """
        known("base: model", self.base, self.models)
        if self.models[self.base].config is None:
            raise UserError(
                f"base: '{self.base}' has scores and is not trained here, so no switch can change it; name a model "
                f"with a config: {', '.join(name for name, model in self.models.items() if model.config is not None)}"
            )
        chain = (self.base, *self.ancestors(self.base))
        models = dict(self.models)
        for switch, assign in self.switches.items():
            if switch in self.models:
                raise UserError(f"switches.{switch}: a model has this name; call the switch otherwise")
            for name in assign:
                known(f"switches.{switch}: model", name, chain)
            models |= self._variants(switch, assign, chain)
        content = self.model_dump(by_alias=True, exclude={"base", "switches", "models", "data"})
        data = {name: self._of_variants(data, models) for name, data in self.data.items()}
        return validate(Study, {**content, "reference": self.base, "models": models, "data": data}, "ablation")

    def _variants(
        self, switch: str, assign: Mapping[str, Assignments], chain: tuple[str, ...]
    ) -> dict[str, StudyModel]:
        changed = chain[: 1 + max(chain.index(name) for name in assign)]
        variants = {}
        for name in changed:
            model, before = self.models[name], self.models[name].parent
            variants[_variant(self.base, name, switch)] = model.model_copy(
                update={
                    "assign": (*model.assign, *assign.get(name, ())),
                    "parent": _variant(self.base, before, switch) if before in changed[1:] else before,
                    "shown": name == self.base,
                }
            )
        return variants

    def _of_variants(self, data: StudyData, models: Iterable[str]) -> StudyData:
        """What holds for a model on these data holds for its variants too."""
        variants = {
            variant: data.assign[name]
            for switch in self.switches
            for name in data.assign
            if (variant := _variant(self.base, name, switch)) in models
        }
        return data.model_copy(update={"assign": {**data.assign, **variants}})


def _variant(base: str, name: str | None, switch: str) -> str:
    return switch if name == base else f"{name}-{switch}"


class Trial(Settings):
    """One try of `tune`."""

    number: int
    assign: Assignments
    score: float | None
    """Monitored metric on the validation split; None where the run failed."""
    seconds: float


class Tuned(Settings):
    """tuned.json: what `torchrec-xd tune` found."""

    study: str
    trials: PositiveInt
    """Budget of every model on every data set."""
    best: dict[str, dict[str, Assignments]]
    """Data set to model to the assignments of its best trial."""
    searches: dict[str, dict[str, tuple[Trial, ...]]] = Field(default_factory=dict)
    """Data set to model to all trials."""

    def of(self, data: str, model: str) -> Assignments:
        """The best assignments.

        Raises:
            UserError: this model was not tuned on these data: then the comparison would be unfair.
        """
        known("tuned settings: data set", data, self.best)
        known(f"tuned settings of {data}: model", model, self.best[data])
        return self.best[data][model]


def known(what: str, name: str, valid: Iterable[str]) -> None:
    """Stop at a name that is not there.

    Raises:
        UserError: it lists the valid ones.
    """
    if name not in (names := list(valid)):
        raise UserError(f"{what} '{name}' is not known; known are: {', '.join(names)}")


def load_study(path: Path, reference: str | None = None) -> Study:
    """Read what `compare` and `tune` take; with `reference` in place of the file's.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    content = _content(path, "switches", "ablate")
    return validate(Study, content if reference is None else {**content, "reference": reference}, str(path))


def load_ablation(path: Path) -> Study:
    """Read what `ablate` takes, every switch thrown.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    return validate(Ablation, _content(path, "reference", "compare"), str(path)).study()


def load_tuned(path: Path) -> Tuned:
    """Read tuned.json, or the settings of a comparison from its results.json, to repeat it.

    Raises:
        UserError: it was not written by `tune` or `compare`, or that comparison took no tuned settings.
    """
    content = load_yaml(path)  # JSON is YAML
    if not {"study", "verdicts"} <= set(content):
        return validate(Tuned, content, str(path))
    found = content.get("tuned")
    if not found:
        raise UserError(f"{path}: this comparison was of models as their configs are; leave --tuned out to repeat it")
    places = {place: found["best"][data] for data, place in found["on"].items()}
    best = {**places, **found["best"]}
    return validate(Tuned, {"study": content["study"], "trials": found["trials"], "best": best}, str(path))


def _content(path: Path, foreign: str, command: str) -> dict[str, Any]:
    content = load_yaml(path)
    if foreign in content:
        raise UserError(f"{path}: has '{foreign}', so it is for `torchrec-xd {command}`")
    return content


def select(
    study: Study,
    data: Sequence[str] = (),
    models: Sequence[str] = (),
    seeds: int | None = None,
    assign: Assignments = (),
) -> Study:
    """A part of a study: all of what is left empty; with `models` also the reference and what they start from.

    Raises:
        UserError: an unknown name, no seed, or an assignment (`assign`) of what the study decides.
    """
    for what, names, valid in (("--data", data, study.data), ("--models", models, study.models)):
        for name in names:
            known(f"{what}:", name, valid)
    kept_data = {name: entry for name, entry in study.data.items() if not data or name in data}
    for name in models:
        if not any(study.models[name].on(label) for label in kept_data):
            raise UserError(f"--models: '{name}' is not on {', '.join(kept_data)}; leave it out, or add its --data")
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UserError(f"--seeds {seeds}: 1 to {MAX_SEEDS}")
    chosen = (study.reference, *models) if models else tuple(study.models)
    kept = {name for model in chosen for name in (model, *study.ancestors(model))}
    return study.model_copy(
        update={
            "data": kept_data,
            "models": {name: model for name, model in study.models.items() if name in kept},
            "seeds": seeds or study.seeds,
            "on_top": given_on_top(assign),
        }
    )
