"""What one run takes from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from torchrec_xd.checkpoint.reading import Reader, load, shape
from torchrec_xd.distributed.lookups import forget_cached_rows
from torchrec_xd.errors import UserError


@dataclass(frozen=True)
class TransferReport:
    """What became of every weight when one run began from another: names in the new model, or in the old run."""

    loaded: tuple[str, ...]
    """Names in the new model, now holding the old run's weights."""
    fresh: tuple[str, ...]
    """Names in the new model that start anew."""
    pruned: tuple[str, ...]
    """Names in the old run that the new model has no use for."""


def transfer(model: nn.Module, folder: Path, prefixes: Mapping[str, str], prunable: Iterable[str]) -> TransferReport:
    """Load declared weights from another run's checkpoint (a collective).

    Args:
        model: holds the new weights already; those that are declared are overwritten.
        folder: the other run's checkpoint.
        prefixes: prefix of names in `model` to the prefix that the same weights have in the checkpoint; without a dot
            at its end it is a name.
        prunable: prefixes of names in the checkpoint that may be left behind.

    Raises:
        UserError: a declared weight is missing in the checkpoint or has another shape, or the checkpoint holds one that
            is neither declared nor prunable. Nothing has been loaded then.
    """
    state = model.state_dict()
    theirs = {}
    for name in state:
        for ours, source in prefixes.items():
            if name == ours or (ours.endswith(".") and name.startswith(ours)):
                theirs[name] = source + name.removeprefix(ours)
    index = Reader(folder).read_metadata().state_dict_metadata
    available = {name.removeprefix("model."): meta for name, meta in index.items() if name.startswith("model.")}
    faults = [
        f"'{source}' (for '{name}'): {shape(state[name])} expected, {shape(available.get(source))} found"
        for name, source in theirs.items()
        if shape(available.get(source)) != shape(state[name])
    ]
    pruned = sorted(set(available) - set(theirs.values()))
    faults += [f"'{name}': nothing takes it" for name in pruned if not name.startswith(tuple(prunable))]
    if faults:
        raise UserError(f"{folder} does not fit this model:\n" + "\n".join(f"  {fault}" for fault in faults))
    for copies in _rounds(theirs):
        load({"model": {source: state[name] for source, name in copies.items()}}, folder)
    forget_cached_rows(model)
    fresh = tuple(name for name in state if name not in theirs)
    return TransferReport(tuple(theirs), fresh, tuple(pruned))


def _rounds(theirs: Mapping[str, str]) -> list[dict[str, str]]:
    """Names there to names here, no name there twice in a round: the n-th weight that takes it comes in the n-th."""
    rounds: list[dict[str, str]] = []
    for name, source in theirs.items():
        free = next((copies for copies in rounds if source not in copies), None)
        if free is None:
            rounds.append(free := {})
        free[source] = name
    return rounds
