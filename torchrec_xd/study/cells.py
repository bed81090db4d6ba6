"""The cells of a study: one run for every data set, seed and model, each in its own run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_xd.config import RunConfig, load_config
from torchrec_xd.data.schema_files import load_schema
from torchrec_xd.data.stamps import current_stamps, data_changes, read_stamps
from torchrec_xd.datasets import prepare_world
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.schema import Schema
from torchrec_xd.study.design import Study, StudyData, StudyModel, Tuned
from torchrec_xd.training.origins import trained_again
from torchrec_xd.training.train_run import changes_since_begun

MANIFEST = "manifest.json"
WORLDS = Path("data/worlds")
"""Where a study's planted worlds lie, from where the command runs."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    data: str
    seed: int
    model: str
    folder: Path
    config: RunConfig
    task: str | None
    """Whose test rows it is compared on; None where the model is not shown."""
    parent: str | None

    @property
    def name(self) -> str:
        """`DATA/SEED/MODEL`, its folder below the study's."""
        return f"{self.data}/{self.seed}/{self.model}"

    @property
    def before(self) -> str | None:
        """Name of the cell that it starts from."""
        return None if self.parent is None else f"{self.data}/{self.seed}/{self.parent}"

    @property
    def schema(self) -> Schema:
        """Of all of its data, whatever of them it reads."""
        return self.config.data_schema

    @property
    def scores(self) -> Path:
        """Its predictions for the test rows."""
        return RunFolder(self.folder).scores

    def finished(self) -> bool:
        """Whether nothing is left to do, scores included.

        Raises:
            UserError: the folder holds a run of another config, its data have changed since, or the run that it
                started from is gone or was trained again.
        """
        if RunFolder(self.folder).exists():
            self._check_config()
            self._check_data()
            self._check_parent()
        return self.trained() and (self.task is None or self.scores.is_file())

    def trained(self) -> bool:
        """Whether only its scores may be missing."""
        return RunFolder(self.folder).finished()

    def metrics(self) -> dict[str, Any]:
        """metrics.json, once it is finished."""
        return RunFolder(self.folder).read_metrics()

    def _check_config(self) -> None:
        if changes := changes_since_begun(self.config, RunFolder(self.folder)):
            raise UserError(
                f"{self.folder} was begun with another config ({changes}): delete the folder to train it anew, "
                "or name another --out"
            )

    def _check_data(self) -> None:
        before = read_stamps(RunFolder(self.folder).data)
        now = current_stamps(self.config.schema_in_use, before, self.config.loader.patience)
        if changes := data_changes(before, now):
            raise UserError(
                f"{self.folder} was trained or measured on other data:\n{changes}\ndelete the folder to train it anew, "
                "put the data back, or name another --out"
            )

    def _check_parent(self) -> None:
        if self.parent is None:
            return
        parent = self.folder.parent / self.parent
        if not RunFolder(parent).finished():
            fault = "is not finished"
        elif trained_again(parent, RunFolder(self.folder)):
            fault = "was trained again since"
        else:
            return
        raise UserError(
            f"{self.folder} started from {parent}, which {fault}: delete {self.folder} to train it anew too, put that "
            "run back, or name another --out"
        )


def cells(study: Study, folder: Path, out: Path, tuned: Tuned | None = None) -> list[Cell]:
    """All runs, each after the one that it starts from; external models have none.

    Args:
        study: what is compared.
        folder: the study file's, from which its paths start.
        out: where the run folders go.
        tuned: what `tune` found goes on top of what the study assigns.

    Raises:
        UserError: a config is not as it must be, does not predict the task of its data set, or is compared and not
            measured on test rows.
    """
    found = []
    for data, entry in study.data.items():
        for seed in range(study.seeds):
            for name in study.trained(data):
                model, place = study.models[name], out / data / str(seed)
                assign = list(tuned.of(entry.tuned_on or data, name)) if tuned is not None else []
                assign += [*study.on_top, f"seed={seed}"]
                before = None if model.parent is None else place / model.parent
                config = cell_config(study, folder, data, name, assign, before)
                _check_measured(config, model, f"{folder / str(model.config)}, as {data}/{name}")
                task = entry.task if model.shown else None
                found.append(Cell(data, seed, name, place / name, config, task, model.parent))
    return found


def prepare_worlds(study: Study, say: Callable[[str], None]) -> None:
    """Make the planted worlds of a study that are not there yet, or are others.

    Raises:
        UserError: an unknown preset or setting.
    """
    for data, entry in study.data.items():
        if entry.world is not None:
            overrides = {name: value for name, value in entry.world.items() if name != "preset"}
            prepare_world(entry.world["preset"], WORLDS / data, overrides, say)


def cell_config(
    study: Study, folder: Path, data: str, name: str, assign: Sequence[str], before: Path | None
) -> RunConfig:
    """The config of a model on a data set.

    Args:
        study: what it is part of.
        folder: the study file's.
        data: name of the data set.
        name: of the model.
        assign: goes on top of what the study assigns.
        before: run folder that it starts from.

    Raises:
        UserError: it is not as it must be, or does not predict the task of its data set.
    """
    model, entry = study.models[name], study.data[data]
    assert model.config is not None  # of outside models there is no cell
    path = folder / model.config
    schema = None if entry.schema_file is None else folder / entry.schema_file
    schema = WORLDS / data / "schema.yaml" if entry.world is not None else schema
    everything = [*study.assign, *model.assign, *entry.assign.get(name, ()), *assign]
    if before is not None:
        everything.append(f"init_from={before}")
    if model.domains is not None:
        known = load_schema(schema) if schema else load_config(path, ["domains=null", *everything]).data_schema
        everything = [f"domains={_domains(model, entry, known)}", *everything]
    config = load_config(path, everything, schema)
    _check(config, model, entry, f"{path}, as {data}/{name}")
    return config


def _domains(model: StudyModel, data: StudyData, schema: Schema) -> str:
    if model.domains == "all":
        return "null"
    if model.domains == "target":
        return f"[{data.task.partition('@')[2]}]"
    return f"[{next(name for name, domain in schema.domains.items() if domain.role == 'source')}]"


def _check(config: RunConfig, model: StudyModel, data: StudyData, origin: str) -> None:
    tasks = [task.name for task in config.schema_in_use.tasks]
    if model.shown and data.task not in tasks:
        raise UserError(
            f"{origin}: does not predict '{data.task}' but {', '.join(tasks)}; set shown: false where others only "
            "start from it"
        )
    if model.parent is None and config.init_from is not None:
        raise UserError(
            f"{origin}: init_from is {config.init_from}, a run outside of the study: set parent: MODEL instead"
        )


def _check_measured(config: RunConfig, model: StudyModel, origin: str) -> None:
    if model.shown and config.evaluate_on != "test":
        raise UserError(
            f"{origin}: evaluate_on is {config.evaluate_on}, and models are compared on test rows: leave it out (tune "
            "chooses settings on validation rows), or set shown: false where others only start from it"
        )
