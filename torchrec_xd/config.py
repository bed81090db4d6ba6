"""RunConfig: everything a run is, composed from the settings of its parts; read from YAML, strictly."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeInt, PlainValidator, SerializeAsAny, model_validator

from torchrec_xd.checkpoint import CheckpointSettings
from torchrec_xd.data.loader import LoaderSettings
from torchrec_xd.data.schema_files import with_rows
from torchrec_xd.distributed.optimizers import OptimizerSettings
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.errors import UserError
from torchrec_xd.evaluation.metrics import MetricSettings
from torchrec_xd.models import find_model
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema, Split
from torchrec_xd.settings import ChosenByName, LocalPath, Settings, load_yaml, override, validate
from torchrec_xd.training.trainer import TrainerSettings


def _model_settings(content: Any) -> Any:
    """The settings of the model that `name` chooses."""
    if isinstance(content, Settings):
        return content
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise ValueError("name the model: model: {name: single, ...}")
    return find_model(name).settings.model_validate(content)


ModelSettings = Annotated[
    SerializeAsAny[Any], PlainValidator(_model_settings), ChosenByName(lambda name: find_model(name).settings)
]
TrackerName = Literal["mlflow", "wandb"]


class RunConfig(Settings):
    """One run: data, model, and how it is trained and measured."""

    data_schema: Schema = Field(alias="schema")
    """The schema itself, or in a file the path of one, relative to that file."""
    model: ModelSettings
    """`name` chooses the model, one of this package's or your own; the other keys are that model's."""
    domains: tuple[str, ...] | None = None
    """Train on these domains only. Default: all of the schema."""
    tasks: tuple[str, ...] | None = None
    """Train and measure these tasks (`<label>@<domain>`) only. Default: all tasks of the domains."""
    without: tuple[str, ...] = ()
    """Features that are left out."""
    without_specific: bool = False
    """Whether all features of group specific are left out, as CTNet's paper pre-trains its source tower."""
    init_from: LocalPath | None = None
    """Run folder that the model starts from (mkt_finetune: the stage-1 run; single: the source's, to fine-tune it)."""
    init_checkpoint: Literal["last", "best"] = "best"
    """Which checkpoint of it: the one with the best validation score, or the last."""
    continue_from: LocalPath | None = None
    """Run folder whose model this run goes on with, on new rows (`train --continue-from`): all weights and optimizer
    states are those of its last checkpoint, and steps count on. Model, features and tasks are the same; tables may have
    more rows. Reading, and the schedule of learning rates, begin anew."""
    continue_optimizer: bool = True
    """With `continue_from`: whether the optimizers' states go on as well; where not, they begin anew, and weights alone
    are taken."""
    day: date | None = None
    """Day of the training rows, `2026-11-26`: the clock of vocabularies (`expire`), which runs that go on from one
    another count on by. Default: they count slices."""
    train_on_valid: bool = False
    """Train on the validation rows too, and validate nothing: for the last run, when all settings are chosen."""
    evaluate_on: Split = "test"
    """Split of the final metrics; `valid` while settings are being chosen."""
    embeddings: EmbeddingSettings = EmbeddingSettings()
    loader: LoaderSettings = LoaderSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    sharding: ShardingSettings = ShardingSettings()
    trainer: TrainerSettings = TrainerSettings()
    metrics: MetricSettings = MetricSettings()
    monitor: Literal["auc", "gauc"] = "auc"
    """Metric on validation rows by which the best checkpoint is known."""
    monitor_tasks: tuple[str, ...] | None = None
    """The metric is averaged over these tasks. Default: all tasks of the target domains."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that get the run's metrics, next to TensorBoard: `mlflow`, `wandb` or both (extra
    `trackers`). Addresses and accounts come from their own environment variables. May change on `--resume`."""
    seed: NonNegativeInt = 0
    """Seeds the weights, the order of rows and dropout."""

    @property
    def schema_in_use(self) -> Schema:
        """The schema, narrowed to `domains`, `tasks` and features, its splits as `train_on_valid` wants them."""
        schema = self.data_schema.only(self.domains) if self.domains else self.data_schema
        schema = schema.only_tasks(self.tasks) if self.tasks else schema
        schema = schema.without(self.without)
        if self.without_specific:
            schema = schema.without(tuple(f.column for f in schema.features if f.group == "specific"))
        if not self.train_on_valid:
            return schema
        domains = {
            name: domain.model_copy(update={"train": domain.paths("train") + domain.paths("valid"), "valid": None})
            for name, domain in schema.domains.items()
        }
        return schema.model_copy(update={"domains": domains})

    @property
    def monitored_tasks(self) -> tuple[str, ...]:
        """`monitor_tasks`. Default: all tasks of the target domains, or of all domains where none is a target."""
        schema = self.schema_in_use
        targets = schema.targets() or tuple(schema.domains)
        return self.monitor_tasks or tuple(task.name for task in schema.tasks if task.domain in targets)

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        names = [task.name for task in self.schema_in_use.tasks]
        for task in self.monitor_tasks or ():
            if task not in names:
                raise ValueError(f"monitor_tasks: '{task}' is not a task in use; these are: {', '.join(names)}")
        monitored, schema = self.monitored_tasks, self.schema_in_use
        valid = [name for name in monitored if schema.domains[name.partition("@")[2]].paths("valid")]
        if self.trainer.patience and not valid:
            raise ValueError(
                "trainer.patience waits for a better score on the valid split, and there is none of the monitored "
                f"tasks, {', '.join(monitored)} (train_on_valid trains on it): name files for one, or leave "
                "trainer.patience out and choose trainer.epochs"
            )
        planned = sum(phase.epochs for phase in self.loader.curriculum)
        if planned > self.trainer.epochs:
            raise ValueError(
                f"loader.curriculum: its phases last {planned} epochs, trainer.epochs is {self.trainer.epochs}; "
                "shorten them, or train longer"
            )
        transfer = find_model(self.model.name).transfer
        if transfer is not None and transfer.required and self.init_from is None:
            raise ValueError(f"model '{self.model.name}' starts from another run: set init_from to its folder")
        if transfer is None and self.init_from is not None:
            raise ValueError(f"model '{self.model.name}' takes nothing from another run: remove init_from")
        return self

    def dump(self) -> str:
        """The resolved config as YAML, schema included: a run folder needs nothing else."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)

    def by_key(self) -> dict[str, Any]:
        """Every setting but the schema's, `a.b` to value."""
        return _flat(self.model_dump(mode="json", by_alias=True, exclude={"data_schema"}))

    def changes_from(self, other: RunConfig, most: int = 3) -> str:
        """What differs from another config, as `key was …, is …`, the first ones; empty where nothing does."""
        dumped = [config.model_dump(mode="json", by_alias=True) for config in (other, self)]
        if len(set(map(json.dumps, dumped))) == 1:  # their order counts
            return ""
        there, here = (_flat(_named(content)) for content in dumped)
        keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if not keys:
            return "the order of features, domains or other keys"
        more = f" and {len(keys) - most} more" if len(keys) > most else ""
        return "; ".join(f"{key} was {there.get(key)!r}, is {here.get(key)!r}" for key in keys[:most]) + more


def _flat(content: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as `a.b` to value."""
    if not isinstance(content, dict):
        return {key: content}
    return {
        name: value for k, below in content.items() for name, value in _flat(below, f"{key}.{k}".lstrip(".")).items()
    }


def _named(content: Any) -> Any:
    """Lists of mappings as mappings: each under its column, if it is a feature, else under its place."""
    if isinstance(content, dict):
        return {key: _named(value) for key, value in content.items()}
    if isinstance(content, list) and content and all(isinstance(each, dict) for each in content):
        return {each.get("column", place): _named(each) for place, each in enumerate(content)}
    return content


def load_config(path: str | Path, assignments: list[str] | None = None, schema: str | Path | None = None) -> RunConfig:
    """Read a config file, its `extends` and its schema file (or `schema` in place of it); apply `--set` assignments.

    Raises:
        UserError: one line per fault, naming file, key, value and the valid choices.
    """
    path, schema_path = Path(path), None
    content = load_yaml(path)
    if schema is not None or isinstance(content.get("schema"), str):
        schema_path = Path(schema or path.parent / content["schema"])
        content["schema"] = load_yaml(schema_path)
    content = override(content, assignments or [])
    if content.get("schema") is None or isinstance(content["schema"], str):
        raise UserError(f"{path}: a run needs a schema: name it in the config (schema: FILE) or by --schema FILE")
    if isinstance(content["schema"], dict):
        content["schema"] = with_rows(content["schema"], str(schema_path or path))
    if schema_path is not None:  # its faults are reported under its own file's name
        validate(Schema, content["schema"], str(schema_path))
    return validate(RunConfig, content, str(path))


def load_run(directory: Path) -> RunConfig:
    """The resolved config of a run folder.

    Raises:
        UserError: the folder is no run.
    """
    folder = RunFolder(directory)
    if not folder.exists():
        raise UserError(f"{directory} is no run folder: it has no config.yaml; name the --run-dir of a finished train")
    config = load_config(folder.config)
    if not config.data_schema.living_tables():
        return config
    return config.model_copy(update={"data_schema": config.data_schema.with_vocabularies(folder.vocabularies, {})})
