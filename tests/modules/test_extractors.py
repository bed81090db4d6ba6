"""What stands in PLE's place in MKT: STAR and MMoE as extractors, and the towers that go with them, by hand."""

import math

import torch

from torchrec_xd.modules.extractors import MixtureExtraction, StarExtraction, StarTowers, TaskTowers

ROWS = {"items": slice(0, 2), "post": slice(2, 3)}
X = torch.tensor([[1.0, 3.0], [3.0, 5.0], [2.0, -1.0]])


def fill(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def star(**options):
    """One layer to width 1: shared weights (1, 2) and bias 0.5; `post` has (3, -1) and 1 of its own."""
    extraction = StarExtraction(2, (1,), ("items", "post"), **options)
    (layer,) = extraction.mlp.layers
    fill(layer.shared, [[1.0, 2.0]], [0.5])
    fill(layer.own["post"], [[3.0, -1.0]], [1.0])
    return extraction


def test_star_multiplies_shared_by_own_weights_of_normalised_rows_by_hand():
    extraction = star(linear=True)
    found = extraction(X, ROWS)
    # the mean of items' rows is (2, 4), their spread 1: normalised to (-1, -1) and (1, 1)
    one = 1 / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(found["items"], torch.tensor([[0.5 - 3 * one], [0.5 + 3 * one]]))
    # one row alone has no spread: running statistics, mean 0 and variance 1; own times shared is (3, -2), bias 1.5
    torch.testing.assert_close(found["post"], torch.tensor([[1.5 + (3 * 2 - 2 * -1) * one]]))
    extraction = star()
    assert extraction(X, ROWS)["items"][0].item() == 0.0  # with a ReLU behind the last layer too


def test_star_extracts_for_wanted_domains_alone():
    extraction = StarExtraction(2, (3, 2), ("post",))
    assert not any("items" in name for name in extraction.state_dict())
    assert {d: tuple(v.shape) for d, v in extraction(X, {"post": slice(0, 3)}).items()} == {"post": (3, 2)}


def test_a_gate_of_each_domain_mixes_experts_of_all_by_hand():
    extraction = MixtureExtraction(2, (1,), ("items", "post"), count=2)
    fill(extraction.experts[0][0], [[1.0, 0.0]], [0.0])
    fill(extraction.experts[1][0], [[0.0, 1.0]], [4.0])
    with torch.no_grad():
        extraction.gates["items"].linear.weight.zero_()
        extraction.gates["post"].linear.weight.copy_(torch.tensor([[math.log(3.0) / 2, 0.0], [0.0, 0.0]]))
    found = extraction(X, ROWS)
    torch.testing.assert_close(found["items"], torch.tensor([[(1 + 7) / 2], [(3 + 9) / 2]]))
    torch.testing.assert_close(found["post"], torch.tensor([[0.75 * 2 + 0.25 * 3]]))


def test_knowledge_may_be_negative_where_it_is_linear():
    extraction = MixtureExtraction(2, (1,), ("post",), count=1, linear=True)
    fill(extraction.experts[0][0], [[-1.0, 0.0]], [0.0])
    torch.testing.assert_close(extraction(X, {"post": slice(0, 3)})["post"], -X[:, :1])


TASKS = {"click@items": "items", "buy@items": "items", "click@post": "post"}
HIDDEN = {"items": torch.tensor([[1.0], [2.0]]), "post": torch.tensor([[3.0]])}


def test_star_towers_share_weights_by_position_by_hand():
    towers = StarTowers(1, (), TASKS)
    (layer,) = towers.mlp.layers
    fill(layer.shared, [[2.0], [-1.0]], [0.0, 0.5])
    fill(layer.own["post"], [[5.0], [1.0]], [1.0, 0.0])
    found = towers(HIDDEN)
    assert {name: logit.flatten().tolist() for name, logit in found.items()} == {
        "click@items": [2.0, 4.0],
        "buy@items": [-0.5, -1.5],
        "click@post": [31.0],
    }


def test_task_towers_have_nothing_in_common():
    towers = TaskTowers(1, (), TASKS)
    for weight, name in enumerate(TASKS, start=1):
        fill(towers[name][0], [[float(weight)]], [0.0])
    found = {name: logit.flatten().tolist() for name, logit in towers(HIDDEN).items()}
    assert found == {"click@items": [1.0, 2.0], "buy@items": [2.0, 4.0], "click@post": [9.0]}
