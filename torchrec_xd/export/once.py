"""What depends on the request alone is computed once a request, and not once a candidate.

The exported graph takes rows of the request by index first, so that it computes the user's part of the net for each of
its candidates. Here the taking is moved behind all that works row by row; and of a linear layer that reads both sides,
the request's columns are multiplied once a request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from torchrec_xd.serving.artifact import REQUEST_OF

_ELEMENTWISE = frozenset(
    (
        *("Abs", "Add", "And", "Cast", "Clip", "Div", "Equal", "Erf", "Exp", "Greater", "GreaterOrEqual", "Less"),
        *("LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sigmoid"),
        *("Softplus", "Sqrt", "Sub", "Tanh", "Where"),
    )
)
_ALIKE = frozenset(("Cast", "Identity", "Reshape"))
"""What the exporter puts between `request_of` and the taking."""
Shape: TypeAlias = tuple[int | None, ...]
"""None: varies."""


def once_a_request(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same net with less work; its inputs and outputs stay."""
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    graph = found.graph
    moved = _Moved(onnx.shape_inference.infer_shapes(proto).graph)
    nodes = [each for node in graph.node for each in moved.taken(node)]
    nodes += [each for output in graph.output for each in moved.gathered(output.name)]
    graph.initializer.extend(moved.added)
    del graph.value_info[:], graph.node[:]
    graph.node.extend(_needed(nodes, {output.name for output in graph.output}))
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return found


def _needed(nodes: list[onnx.NodeProto], names: set[str]) -> list[onnx.NodeProto]:
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if names.intersection(node.output):
            kept.append(node)
            names = names | set(node.input)
    return kept[::-1]


class _Moved:
    """Nodes in their order, and which values have rows of the request so far."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {each.name: each for each in graph.initializer}
        self.added: list[onnx.TensorProto] = []
        self._shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)}
        self._shapes |= {name: tuple(each.dims) for name, each in self.constants.items()}
        self._index = {REQUEST_OF}
        self._once: dict[str, str] = {}
        """Value of each candidate to the value of each request that it is taken from."""
        self._parts: dict[str, list[str]] = {}
        """Result of a Concat of columns to what it joins."""
        self._gathered: set[str] = set()

    def taken(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """What takes the place of a node."""
        given, result = [name for name in node.input if name], node.output[0]
        if node.op_type in _ALIKE and given[0] in self._index:
            self._index.add(result)
        if node.op_type == "Gather" and given[1] in self._index and _attribute(node, "axis", 0) == 0:
            self._once[result] = given[0]
            return
        if any(name in self._once for name in given) and self._row_by_row(node, given):
            moved = onnx.NodeProto()
            moved.CopyFrom(node)
            moved.input[:] = [self._once.get(name, name) for name in node.input]
            moved.output[:] = [f"{name}/once" for name in node.output]
            self._once |= dict(zip(node.output, moved.output, strict=True))
            yield moved
            return
        if node.op_type == "Concat" and _attribute(node, "axis", 0) in (1, -1) and len(self._shapes[result]) == 2:
            self._parts[result] = [part for name in given for part in self._parts.get(name, [name])]
        split = self._split(node) if node.op_type == "Gemm" else None
        if split is not None:
            yield from split
            return
        for name in given:
            yield from self.gathered(name)
        yield node

    def gathered(self, name: str) -> Iterator[onnx.NodeProto]:
        """What makes a value of each candidate, if it is not there yet."""
        if name in self._once and name not in self._gathered:
            self._gathered.add(name)
            yield helper.make_node("Gather", [self._once[name], REQUEST_OF], [name], axis=0)

    def _split(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        """A linear layer of columns of both sides: those of the request once, and added to the product of the others.

        None where it is not that, or the widths are not known.
        """
        parts, widths = self._parts.get(node.input[0], []), []
        for part in parts:
            width = self._shapes[part][-1]
            if width is None:
                return None
            widths.append(width)
        both = [part in self._once for part in parts]
        constant = all(name in self.constants for name in node.input[1:])
        plain = _attribute(node, "alpha", 1.0) == 1.0 == _attribute(node, "beta", 1.0)
        if len(set(both)) != 2 or not constant or not plain or _attribute(node, "transA", 0):
            return None
        weight = numpy_helper.to_array(self.constants[node.input[1]])
        weight_KN = weight.T if _attribute(node, "transB", 0) else weight
        columns = np.repeat(both, widths)
        nodes, result = [], node.output[0]
        bias = [*node.input[2:]]
        for mine, suffix in ((True, "once"), (False, "each")):
            name = f"{result}/{suffix}"
            own = [part for part, once in zip(parts, both, strict=True) if once == mine]
            self.added.append(
                numpy_helper.from_array(np.ascontiguousarray(weight_KN[columns == mine]), f"{name}/weight")
            )
            read = [self._once[part] if mine else part for part in own]
            nodes.append(helper.make_node("Concat", read, [f"{name}/columns"], axis=1))
            nodes.append(
                helper.make_node("Gemm", [f"{name}/columns", f"{name}/weight", *bias], [name if mine else result])
            )
            if mine:
                bias = [f"{name}/taken"]
                nodes.append(helper.make_node("Gather", [name, REQUEST_OF], bias, axis=0))
        return nodes

    def _row_by_row(self, node: onnx.NodeProto, given: list[str]) -> bool:
        """Whether each row of a node's results depends on the same row of the values of requests alone."""
        rule = _RULES.get(node.op_type)
        if node.op_type in _ELEMENTWISE:
            rule = _Moved._aligned
        if rule is None or any(name not in self._once and name not in self.constants for name in given):
            return False
        return all(name in self._shapes for name in given) and rule(self, node, given)

    def _aligned(self, node: onnx.NodeProto, given: list[str]) -> bool:
        ranks = {len(self._shapes[name]) for name in given if name in self._once}
        rank = max(ranks)
        return (
            len(ranks) == 1
            and rank > 0
            and all(
                len(self._shapes[name]) < rank or self._shapes[name][0] == 1 for name in given if name not in self._once
            )
        )

    def _product(self, node: onnx.NodeProto, given: list[str]) -> bool:
        constant_bias = all(len(self._shapes[name]) < 2 or self._shapes[name][0] == 1 for name in given[2:])
        return (
            given[0] in self._once
            and not any(name in self._once for name in given[1:])
            and len(self._shapes[given[0]]) >= 2
            and len(self._shapes[given[1]]) == 2
            and constant_bias
            and not _attribute(node, "transA", 0)
        )

    def _along_columns(self, node: onnx.NodeProto, given: list[str]) -> bool:
        rank, every = len(self._shapes[given[0]]), all(name in self._once for name in given)
        default = {"Softmax": -1}.get(node.op_type, 0)
        return (every or node.op_type in ("Split", "Gather")) and _attribute(node, "axis", default) % rank != 0

    def _other_axes(self, node: onnx.NodeProto, given: list[str]) -> bool:
        at = 3 if node.op_type == "Slice" else 1
        if given[0] not in self._once or len(given) <= at:
            return False
        axes = numpy_helper.to_array(self.constants[given[at]])
        rank = len(self._shapes[given[0]]) + (len(axes) if node.op_type == "Unsqueeze" else 0)
        return all(axis % rank for axis in axes.tolist())

    def _same_rows(self, node: onnx.NodeProto, given: list[str]) -> bool:
        own, shape = self._shapes[given[0]][1:], numpy_helper.to_array(self.constants[given[1]]).tolist()
        sizes = [size for size in own if size is not None]
        return (
            given[0] in self._once
            and len(sizes) == len(own)
            and shape[0] == -1
            and math.prod(sizes) == math.prod(shape[1:])
        )


_RULES: dict[str, Callable[[_Moved, onnx.NodeProto, list[str]], bool]] = {
    "MatMul": _Moved._product,
    "Gemm": _Moved._product,
    "Concat": _Moved._along_columns,
    "Split": _Moved._along_columns,
    "Softmax": _Moved._along_columns,
    "Gather": _Moved._along_columns,
    "ReduceSum": _Moved._other_axes,
    "ReduceMean": _Moved._other_axes,
    "Unsqueeze": _Moved._other_axes,
    "Squeeze": _Moved._other_axes,
    "Slice": _Moved._other_axes,
    "Reshape": _Moved._same_rows,
}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
