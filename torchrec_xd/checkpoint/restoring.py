"""What a checkpoint holds, into a model and its optimizers: on their own ranks, by their own plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from torchrec_xd.checkpoint.reading import Reader, load, shape
from torchrec_xd.checkpoint.resharding import convert, moved_states
from torchrec_xd.distributed.lookups import forget_cached_rows
from torchrec_xd.errors import UserError

if TYPE_CHECKING:
    from torchrec_xd.distributed.optimizers import Optimizers


def state_of(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """All that a run's weights and optimizers are made of.

    Parameter groups hold settings alone, which the config has; a state of pure tensors needs no pickle.
    """
    return {"model": model.state_dict(), "optimizer": optimizers.state.state_dict()["state"]}


def restore(
    model: nn.Module,
    optimizers: Optimizers,
    folder: Path,
    generators: Mapping[str, dict[str, Tensor]] | None = None,
    *,
    without: tuple[str, ...] = (),
    grown: bool = False,
    weights_alone: bool = False,
) -> None:
    """Load weights and optimizer states from a checkpoint (a collective).

    Args:
        model: to be filled.
        optimizers: to be filled.
        folder: the checkpoint.
        generators: states of random generators, to be filled as well.
        without: prefixes of weights that stay as they are.
        grown: tables may have more rows than the checkpoint's: these keep their first weights, with a state of zero.
        weights_alone: optimizer states stay as they are.

    Raises:
        UserError: the checkpoint was written by another kind of optimizer. Nothing has been loaded then.
    """
    if weights_alone:
        weights = {name: value for name, value in model.state_dict().items() if not name.startswith(without)}
        load({"model": weights}, folder, grown=grown)
        forget_cached_rows(model)
        return
    optimizers.init_state()
    state = state_of(model, optimizers)
    moved = moved_states(state, folder)
    same = {
        name: {part: value for part, value in parts.items() if (name, part) not in moved}
        for name, parts in state["optimizer"].items()
    }
    same = {name: parts for name, parts in same.items() if parts}
    weights = {name: value for name, value in state["model"].items() if not name.startswith(without)}
    load({"model": weights, "optimizer": same, **(generators or {})}, folder, grown=grown)
    forget_cached_rows(model)
    for (name, _), source in moved.items():
        if source is not None:
            convert(source, name, folder)
    optimizers.state.load_state_dict({"state": state["optimizer"]})


def check_fits(
    weights: Mapping[str, Tensor], tables: Mapping[str, object], folder: Path, without: tuple[str, ...]
) -> None:
    """Check that a checkpoint holds the weights of a model, with as many rows of its tables or fewer.

    Args:
        weights: of the model, by name; those on the meta device have a shape too.
        tables: names among them that may have more rows than the checkpoint's.
        folder: the checkpoint.
        without: prefixes of names that need not be there.

    Raises:
        UserError: a weight is missing on one side, or has another shape.
    """
    index = Reader(folder).read_metadata().state_dict_metadata
    there = {name.removeprefix("model."): shape(entry) for name, entry in index.items() if name.startswith("model.")}
    here = {name: tuple(weight.shape) for name, weight in weights.items()}
    faults = []
    for name in {**there, **here}:
        found, wanted = there.get(name), here.get(name)
        grows = name in tables and found and wanted and found[1:] == wanted[1:] and found[0] < wanted[0]
        if found != wanted and not grows and not name.startswith(without):
            faults.append(f"'{name}': {wanted} expected, {found} found")
    if faults:
        raise UserError(f"{folder} does not fit this model:\n" + "\n".join(f"  {fault}" for fault in faults))
