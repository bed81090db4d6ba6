"""What depends on the request alone is computed once a request: the same results, by less work."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from torchrec_xd.export.once import once_a_request

R, B, RNG = 3, 7, np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)
FEEDS = {
    "request/a": RNG.normal(size=(R, 6)).astype(np.float32),
    "request/s": RNG.normal(size=(R, 2, 3)).astype(np.float32),
    "candidate/b": RNG.normal(size=(B, 6)).astype(np.float32),
    "request_of": np.array([0, 2, 2, 1, 0, 0, 2]),
}


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def model(*nodes, **constants):
    """`a`, `s`: the request's inputs, taken for each candidate; `y` is the output."""
    floats = {"request/a": ["R", 6], "request/s": ["R", 2, 3], "candidate/b": ["B", 6]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in floats.items()]
    inputs.append(helper.make_tensor_value_info("request_of", TensorProto.INT64, ["B"]))
    taken = [node("Gather", f"request/{name} request_of", name) for name in ("a", "s")]
    graph = helper.make_graph(
        [*taken, *nodes],
        "net",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {"w": WEIGHT, **constants}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(proto, feeds=None):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], feeds or FEEDS)[0]


def operators(proto, of_requests):
    """Kinds of the nodes with a result of each request, or of each candidate."""
    nodes = [n for n in proto.graph.node if n.op_type != "Gather"]
    return [n.op_type for n in nodes if n.output[0].endswith("/once") == of_requests]


MOVED = {
    "linear, relu": [node("Gemm", "a w", "h"), node("Relu", "h", "y")],
    "transposed": [node("Gemm", "a w6", "h", transB=1), node("Relu", "h", "y")],
    "batched product": [node("MatMul", "s m", "y")],
    "by constants": [node("Mul", "a row", "h"), node("Sub", "h one", "y")],
    "columns": [node("Concat", "a a", "h", axis=1), node("Slice", "h two four ones", "y")],
    "softmax": [node("Softmax", "s", "h", axis=-1), node("ReduceSum", "h ones", "y", keepdims=0)],
    "shapes": [node("Unsqueeze", "a ones", "h"), node("Reshape", "h flat", "y")],
}
CONSTANTS = {
    "w6": WEIGHT.T.copy(),
    "m": RNG.normal(size=(3, 2)).astype(np.float32),
    "row": RNG.normal(size=6).astype(np.float32),
    "one": np.float32(1),
    "two": np.array([2]),
    "four": np.array([4]),
    "ones": np.array([1]),
    "flat": np.array([-1, 3, 2]),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_works_row_by_row_is_moved(name):
    nodes = MOVED[name]
    proto = model(*nodes, **CONSTANTS)
    found = once_a_request(proto)
    np.testing.assert_array_equal(run(found), run(proto))
    assert operators(found, True) == [each.op_type for each in nodes]
    assert operators(found, False) == []
    assert [n.input[1] for n in found.graph.node if n.op_type == "Gather"] == ["request_of"]


KEPT = {
    "a sum over all rows": node("ReduceSum", "a zero", "y", keepdims=1),
    "a softmax over rows": node("Softmax", "a", "y", axis=0),
    "a constant for each candidate": node("Add", "a seven", "y"),
    "rows joined": node("Concat", "a a", "y", axis=0),
    "rows cut": node("Slice", "a zero two", "y"),
    "rows in columns": node("Reshape", "a other", "y"),
    "transposed": node("Gemm", "a v", "y", transA=1),
    "both sides": node("Add", "a candidate/b", "y"),
    "a sum over axes that are not named": node("ReduceSum", "a", "y", keepdims=1),
    "an unknown operator": node("CumSum", "a zero0", "y"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_looks_at_other_rows_or_at_candidates_stays(name):
    more = {
        "zero": np.array([0]),
        "zero0": np.array(0),
        "two": np.array([2]),
        "seven": RNG.normal(size=(B, 6)).astype(np.float32),
        "other": np.array([-1, 3]),
        "v": RNG.normal(size=(B, 2)).astype(np.float32),
    }
    proto = model(KEPT[name], **more)
    found = once_a_request(proto)
    np.testing.assert_array_equal(run(found), run(proto))
    assert operators(found, True) == []
    assert operators(found, False) == [KEPT[name].op_type]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_both_sides_multiplies_the_request_once(bias, transposed):
    weight = RNG.normal(size=(24, 5)).astype(np.float32)
    nodes = [
        node("Concat", "candidate/b a", "inner", axis=1),
        node("Concat", "inner a candidate/b", "both", axis=1),
        node("Gemm", "both v" + " c" * bias, "y", transB=transposed),
    ]
    proto = model(*nodes, v=weight.T.copy() if transposed else weight, c=RNG.normal(size=5).astype(np.float32))
    found = once_a_request(proto)
    np.testing.assert_allclose(run(found), run(proto), rtol=1e-5, atol=1e-6)
    products = [n for n in found.graph.node if n.op_type == "Gemm"]
    shapes = {each.name: list(each.dims) for each in found.graph.initializer}
    assert [shapes[n.input[1]] for n in products] == [[12, 5], [12, 5]]
    assert {name for n in found.graph.node if n.op_type == "Concat" for name in n.input} == {"request/a", "candidate/b"}
    assert "v" not in shapes


def test_a_value_that_both_sides_read_is_taken_once():
    nodes = [
        node("Relu", "a", "h"),
        node("Add", "h candidate/b", "left"),
        node("Mul", "h candidate/b", "right"),
        node("Add", "left right", "y"),
    ]
    proto = model(*nodes)
    found = once_a_request(proto)
    np.testing.assert_array_equal(run(found), run(proto))
    assert sum(n.op_type == "Gather" for n in found.graph.node) == 1


def test_inputs_and_outputs_stay():
    found = once_a_request(model(node("Relu", "a", "y")))
    assert [each.name for each in found.graph.input] == list(FEEDS)
    assert [each.name for each in found.graph.output] == ["y"]
