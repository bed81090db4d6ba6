"""The device `meta` as a stand-in for a GPU: it computes nothing, but knows shapes, types and where everything lies.

By itself it lets through what a GPU refuses or waits for, and autocast does not know it: what is here is stricter.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from torchrec_xd.distributed.process_group import Processes

DEVICE = torch.device("meta")
PROCESSES = Processes(0, 1, 1, DEVICE, None, 1)
"""One process on the device."""

UNREPEATABLE = re.compile(
    r"::(cum(sum|prod)|scatter_reduce|put_?$|histc|bincount|kthvalue|median|.*pool.*backward|.*pad\dd_backward|upsample.*"
    r"backward|grid_sampler.*backward|_embedding_bag.*max|_ctc_loss_backward|nll_loss2d|max_unpool)"
)
"""Operators on floating-point numbers for which CUDA has no algorithm that repeats, or may have none: as the
documentation of torch.use_deterministic_algorithms lists them."""


class Device(TorchDispatchMode):
    """Every tensor that an operator reads or makes has to lie on the device, or a GPU would stop or wait.

    Copies to the CPU are counted, and give zeros.

    Args:
        host: whether there may also be operators whose tensors all lie on the CPU, and copies from there.
    """

    def __init__(self, *, host: bool = False) -> None:
        super().__init__()
        self.host = host
        self.copies: list[tuple[int, ...]] = []
        """Shape of what was copied to the CPU, copy by copy."""
        self.ran = 0
        """Operators on the device so far."""
        self.unrepeatable: set[str] = set()
        """Those of them that on a GPU have no deterministic algorithm."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name, kwargs or {}
        given = tensors((args, kwargs))
        places = {each.device.type for each in given}
        if name == "aten::_to_copy" and places == {"meta"} and kwargs.get("device", DEVICE).type == "cpu":
            return self._copied(given[0], torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype))
        if name == "aten::copy_" and [each.device.type for each in given] == ["cpu", "meta"]:
            return self._copied(given[1], given[0].zero_())
        if name == "aten::_to_copy" and places == {"cpu"} and self.host:
            return function(*args, **kwargs)
        assert name not in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero"), f"{name} waits for the device"
        result = function(*args, **kwargs)
        if name == "aten::empty" and not result.numel():
            return result  # torchrec's stand-in for the weights that ids do not have
        places |= {each.device.type for each in tensors(result)}
        assert "cpu" not in places or (self.host and places == {"cpu"}), f"{name} of tensors on {sorted(places)}"
        self.ran += places == {"meta"}
        if UNREPEATABLE.search(name) and any(each.is_floating_point() for each in tensors(result)):
            self.unrepeatable.add(name)
        return result

    def _copied(self, source: Tensor, target: Tensor) -> Tensor:
        self.copies.append(tuple(source.shape))
        return target


class NoLists(TorchFunctionMode):
    """Refuses Python numbers that become a tensor on the device, a copy that waits; `Device` does not see it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        indexes = function in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == DEVICE
        index = args[1] if indexes else ()
        for part in index if isinstance(index, tuple) else (index,):
            assert not isinstance(part, list | range), f"a list as index: {part}"
        result = function(*args, **(kwargs or {}))
        makes = function in (torch.tensor, torch.as_tensor, torch.asarray)
        assert not (makes and result.device == DEVICE), f"{function.__name__}({args[0]}) on the device"
        return result


LOWER = {functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.einsum}
FLOAT = {
    torch.softmax,
    Tensor.softmax,
    torch.exp,
    Tensor.exp,
    torch.log,
    Tensor.log,
    torch.sum,
    Tensor.sum,
    Tensor.pow,
    functional.binary_cross_entropy_with_logits,
}
WIDEST = {torch.cat, torch.stack, torch.addcmul}


class Bf16(TorchFunctionMode):
    """What `torch.autocast("cuda", torch.bfloat16)` does of the operators that models call; it has no `meta`.

    `LOWER` run in bf16, `FLOAT` in fp32, `WIDEST` in the widest type of what they are given, all others as they are.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in LOWER:
            args, kwargs = cast((args, kwargs), torch.bfloat16)
        elif function in FLOAT:
            args, kwargs = cast((args, kwargs), torch.float32)
        elif function in WIDEST:
            narrow = all(each.dtype == torch.bfloat16 for each in tensors((args, kwargs)) if each.is_floating_point())
            args, kwargs = cast((args, kwargs), torch.bfloat16 if narrow else torch.float32)
        return function(*args, **kwargs)


def tensors(tree) -> list[Tensor]:
    """All tensors in it."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def cast(tree, dtype: torch.dtype):
    """The tree with its floating-point tensors in another type."""
    return tree_map(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )
