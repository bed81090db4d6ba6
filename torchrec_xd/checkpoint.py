"""Checkpoints: everything a run needs to go on, written whole or not at all; and what one run takes from another.

A checkpoint is a folder `step_<global step>`: torch's distributed checkpoint files (tables, dense weights, optimizer
state and each rank's random generator) and `position.json`. No pickle of unknown content is ever loaded: tensors are
read with `weights_only`, the index through an unpickler that knows only torch's own index classes.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import PositiveInt
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from torchrec_xd.batch import Position
from torchrec_xd.settings import Settings, UserError
from torchrec_xd.world import World

if TYPE_CHECKING:
    from torchrec_xd.sharding import Optimizers

INDEX_CLASSES = {
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""All that the index of a checkpoint of tensors is made of, beside torch's dtypes."""
DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}


class CheckpointSettings(Settings):
    """When checkpoints are written, and how many stay."""

    every_steps: PositiveInt | None = None
    """Also every so many steps, beside the end of every epoch."""
    keep: PositiveInt = 2
    """The last so many stay, and the best one beside them."""


@dataclass(frozen=True)
class Saved:
    """What `position.json` says of a checkpoint."""

    step: int
    """Optimizer steps since the run began."""
    position: Position
    world_size: int
    schema: str
    """Fingerprint of the schema."""
    score: float | None = None
    """The monitored validation metric, where it was measured; larger is better."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, settings: CheckpointSettings, world: World, schema: str) -> None:
        self.directory, self.settings, self.world, self.schema = directory, settings, world, schema

    def save(
        self, model: nn.Module, optimizers: Optimizers, position: Position, step: int, score: float | None
    ) -> None:
        """Write a checkpoint (a collective): into a temporary folder, renamed when all ranks are done."""
        final = self.directory / f"step_{step:09d}"
        partial = self.directory / f"partial_{step:09d}"
        if self.world.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.world.barrier()
        save_distributed(_state(model, optimizers, self.world.rank), checkpoint_id=partial)
        if self.world.first:
            saved = Saved(step, position, self.world.size, self.schema, score)
            (partial / "position.json").write_text(json.dumps(asdict(saved)))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            self._prune()
        self.world.barrier()

    def resume(self, model: nn.Module, optimizers: Optimizers) -> Saved | None:
        """Load the last checkpoint into model, optimizer and random generator (a collective); None if there is none.

        Raises:
            UserError: it was written by another number of processes, or for a schema of another meaning.
        """
        folder = self.last()
        if folder is None:
            return None
        saved = read_saved(folder)
        if saved.world_size != self.world.size:
            raise UserError(
                f"{folder} was written by {saved.world_size} processes and this run has {self.world.size}: "
                f"an exact resume needs {saved.world_size}"
            )
        self._check_schema(folder, saved)
        optimizers.init_state()
        state = _state(model, optimizers, self.world.rank)
        _load(state, folder)
        optimizers.state.load_state_dict({"state": state["optimizer"]})
        torch.set_rng_state(state["rng"][str(self.world.rank)])
        return saved

    def load(self, model: nn.Module, folder: Path) -> None:
        """Load weights alone, whatever the number of processes that wrote them (a collective)."""
        self._check_schema(folder, read_saved(folder))
        _load({"model": model.state_dict()}, folder)

    def last(self) -> Path | None:
        """The latest checkpoint."""
        return max(self._all(), default=None)

    def best(self) -> Path | None:
        """The checkpoint with the best score; the latest one where none has a score."""
        scored = {folder: read_saved(folder).score for folder in self._all()}
        scores = {folder: score for folder, score in scored.items() if score is not None}
        return max(scores, key=lambda folder: scores[folder]) if scores else self.last()

    def _all(self) -> list[Path]:
        return sorted(self.directory.glob("step_*")) if self.directory.is_dir() else []

    def _prune(self) -> None:
        keep = {*self._all()[-self.settings.keep :], self.best()}
        for folder in self._all():
            if folder not in keep:
                shutil.rmtree(folder)

    def _check_schema(self, folder: Path, saved: Saved) -> None:
        if saved.schema != self.schema:
            raise UserError(
                f"{folder} was trained with a schema of another meaning ({saved.schema}, now {self.schema}): "
                "columns, tables or tasks have changed since; use the run's own config.yaml, or train anew"
            )


@dataclass(frozen=True)
class Manifest:
    """What became of every weight when one run began from another: names in the new model, or in the old run."""

    loaded: tuple[str, ...]
    """Names in the new model, now holding the old run's weights; all of them are frozen."""
    fresh: tuple[str, ...]
    """Names in the new model that start anew."""
    pruned: tuple[str, ...]
    """Names in the old run that the new model has no use for."""


def transfer(model: nn.Module, folder: Path, prefixes: Mapping[str, str], prunable: Iterable[str]) -> Manifest:
    """Load declared weights from another run's checkpoint (a collective).

    Args:
        model: holds the new weights already; those that are declared are overwritten.
        folder: the other run's checkpoint.
        prefixes: prefix of names in `model` to the prefix that the same weights have in the checkpoint.
        prunable: prefixes of names in the checkpoint that may be left behind.

    Raises:
        UserError: a declared weight is missing in the checkpoint or has another shape, or the checkpoint holds one that
            is neither declared nor prunable. Nothing has been loaded then.
    """
    state = model.state_dict()
    theirs = {}
    for name in state:
        for ours, source in prefixes.items():
            if name.startswith(ours):
                theirs[name] = source + name.removeprefix(ours)
    index = _Reader(folder).read_metadata().state_dict_metadata
    available = {name.removeprefix("model."): meta for name, meta in index.items() if name.startswith("model.")}
    faults = [
        f"'{source}' (for '{name}'): {_shape(state[name])} expected, {_shape(available.get(source))} found"
        for name, source in theirs.items()
        if _shape(available.get(source)) != _shape(state[name])
    ]
    pruned = sorted(set(available) - set(theirs.values()))
    faults += [f"'{name}': nothing takes it" for name in pruned if not name.startswith(tuple(prunable))]
    if faults:
        raise UserError(f"{folder} does not fit this model:\n" + "\n".join(f"  {fault}" for fault in faults))
    _load({"model": {source: state[name] for name, source in theirs.items()}}, folder)
    fresh = tuple(name for name in state if name not in theirs)
    return Manifest(tuple(theirs), fresh, tuple(pruned))


def read_saved(folder: Path) -> Saved:
    """What a checkpoint says of itself.

    Raises:
        UserError: the folder is no checkpoint of ours.
    """
    try:
        content = json.loads((folder / "position.json").read_text())
        return Saved(**{**content, "position": Position(**content["position"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} is no checkpoint: position.json: {error}") from None


def _state(model: nn.Module, optimizers: Optimizers, rank: int) -> dict[str, Any]:
    # Parameter groups hold settings alone, which the config has; a state of pure tensors needs no pickle.
    return {
        "model": model.state_dict(),
        "optimizer": optimizers.state.state_dict()["state"],
        "rng": {str(rank): torch.get_rng_state()},
    }


def _load(state: dict[str, Any], folder: Path) -> None:
    reader = _Reader(folder)
    reader.read_metadata()  # here, where what is wrong with it is still a plain error
    try:
        load_distributed(state, storage_reader=reader, planner=_TensorsOnly())
    except CheckpointException as error:
        causes = "; ".join(sorted({str(cause[0]) for cause in error.failures.values()}))
        raise UserError(f"{folder} cannot be loaded: {causes}") from error


def _shape(entry: Any) -> tuple[int, ...] | None:
    """Of a tensor, a sharded tensor or a checkpoint's entry; None where there is none."""
    if hasattr(entry, "local_shards"):
        entry = entry.metadata()
    elif isinstance(entry, torch.Tensor):
        return tuple(entry.shape)
    return tuple(entry.size) if hasattr(entry, "size") else None


class _TensorsOnly(DefaultLoadPlanner):
    """Refuses anything but tensors: the rest would be unpickled."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise UserError(f"checkpoint entry '{read_item.dest_index.fqn}' is a pickle; only tensors are loaded")


class _Reader(FileSystemReader):
    """Reads torch's index with an unpickler that knows the index's own classes and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as stream:
                metadata = _IndexUnpickler(stream).load()
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError) as error:
            raise UserError(f"{path}: not the index of a checkpoint: {error}") from None
        assert isinstance(metadata, Metadata)
        for info in cast(dict[Any, Any], metadata.storage_data).values():
            if Path(info.relative_path).name != info.relative_path:
                raise UserError(f"{path}: points outside the checkpoint: {info.relative_path}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in INDEX_CLASSES.get(module, ()) or (module == "torch" and name in DTYPES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")
