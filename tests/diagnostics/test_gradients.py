"""Gradient cosines: against gradients of each domain by itself, and where the answer is known."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.small_models import JOINT, joint_model
from torchrec_xd.config import load_run
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.diagnostics.gradients import GradientCosines, block_of
from torchrec_xd.distributed.optimizers import OptimizerSettings
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.schema import Schema
from torchrec_xd.training import diagnosis
from torchrec_xd.training.building import build_sharded


def cosine_of(pairs, block, *domains):
    (found,) = [pair for pair in pairs if pair["block"] == block and pair["domains"] == list(domains)]
    return found


def test_gradient_cosines_are_those_of_the_domains_one_by_one(schema, batches):
    task = joint_model(schema, "shared_bottom").eval()
    expected = {}
    for n, batch in enumerate(batches):
        gradients = {}
        for domain in schema.domains:
            task.zero_grad()
            task(batch).loss[f"bce/click@{domain}"].backward()
            dense = {n: p.grad for n, p in task.named_parameters() if "bags" not in n and ".sequences.embed" not in n}
            gradients[domain] = {n: g.clone() for n, g in dense.items() if g is not None and g.any()}
        for a, b in combinations(schema.domains, 2):
            shared = [name for name in gradients[a] if name in gradients[b]]
            for block, names in {"all": shared, "trunk": [name for name in shared if "trunk" in name]}.items():
                left, right = (torch.cat([gradients[d][name].flatten() for name in names]) for d in (a, b))
                expected[a, b, block, n] = functional.cosine_similarity(left, right, dim=0).item(), len(left)
    found = GradientCosines(diagnosis.dense_parameters(task), schema)
    rows = diagnosis.measure(task, [found], batches)
    assert rows == [320, 160, 160]
    pairs = found.values()["pairs"]
    for a, b in combinations(schema.domains, 2):
        for block in ("all", "trunk"):
            cosines = np.array([expected[a, b, block, n][0] for n in range(len(batches))])
            said = cosine_of(pairs, block, a, b)
            assert said["mean"] == pytest.approx(cosines.mean(), abs=1e-5)
            assert said["std"] == pytest.approx(cosines.std(), abs=1e-5)
            assert said["negative"] == (cosines < 0).mean()
            assert said["parameters"] == expected[a, b, block, 0][1]
            assert said["batches"] == len(batches)
    assert {pair["block"] for pair in pairs} == {
        "all",
        "embeddings.numeric.dim_4.lines",
        "rows.vectors.pooling.poolings.hist",
        "trunk",
    }  # neither towers nor alignments: those belong to one domain


@pytest.fixture(scope="module")
def twins(feed):
    """Two domains that are the same rows, a model whose towers are the same, and a batch of as many rows of both."""
    files = {"role": "target", "train": "post/train.parquet"}
    content = {**feed, "domains": {"a": files, "b": files}}
    content["tasks"] = [{"label": "click", "domain": "a"}, {"label": "click", "domain": "b"}]
    content["features"] = [feature for feature in feed["features"] if feature["group"] != "specific"]
    schema = Schema.model_validate(content)
    task = joint_model(schema, "shared_bottom").eval()
    towers = task.net.towers.towers
    towers["click@b"].load_state_dict(towers["click@a"].state_dict())
    batch = next(iter(Loader(schema, LoaderSettings(batch_size=100), "train", ShardSpec(shuffle=False)).batches()))
    assert batch.offsets == (0, 40, 80)
    return schema, task, batch


def test_domains_that_are_alike_pull_the_same_way(twins):
    schema, task, batch = twins
    found = GradientCosines(diagnosis.dense_parameters(task), schema)
    diagnosis.measure(task, [found], [batch])
    pairs = found.values()["pairs"]
    assert len(pairs) == 4
    for pair in pairs:
        assert pair["mean"] == pytest.approx(1, abs=1e-6)
        assert pair["negative"] == pair["std"] == 0


def test_opposed_labels_pull_against_each_other(twins):
    schema, task, batch = twins
    label_BT = batch.label_BT.clone()
    label_BT[40:, 1] = 1 - label_BT[40:, 1]
    found = GradientCosines(diagnosis.dense_parameters(task), schema)
    diagnosis.measure(task, [found], [replace(batch, label_BT=label_BT)])
    said = cosine_of(found.values()["pairs"], "trunk", "a", "b")
    assert said["mean"] < -0.5
    assert said["negative"] == 1


def test_a_batch_without_one_of_the_domains_says_nothing_of_its_pairs(twins):
    schema, task, batch = twins
    found = GradientCosines(diagnosis.dense_parameters(task), schema)
    diagnosis.measure(task, [found], [replace(batch, offsets=(0, 0, 80), label_BT=batch.label_BT.nan_to_num()), batch])
    assert {pair["batches"] for pair in found.values()["pairs"]} == {1}


def test_no_weight_and_no_optimizer_moves(runs, batches):
    config = load_run(runs / "mem").model_copy(update={"optimizer": OptimizerSettings()})

    def bits(model, optimizers):
        def copies(state, path=""):
            for key, value in state.items():
                if isinstance(value, dict):
                    yield from copies(value, f"{path}{key}/")
                elif hasattr(value, "local_shards"):
                    for shard in value.local_shards():
                        yield f"{path}{key}", shard.tensor.clone()
                else:
                    yield f"{path}{key}", torch.as_tensor(value).clone()

        states = {"weights": model.state_dict(), "optimizers": optimizers.state.state_dict()["state"]}
        return dict(copies(states))

    with process_group() as processes:
        model, optimizers = build_sharded(config, processes)
        before = bits(model, optimizers)
        found, _ = diagnosis.applying(model.module, config, "test", runs / "mem")
        diagnosis.measure(model.module, found, batches)
        after = bits(model, optimizers)
        model(batches[0]).total_loss().backward()  # what would have moved tables and their state
        moved = bits(model, optimizers)
    tables = [name for name in before if "t_item" in name]
    assert len(tables) == 2
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not torch.equal(before[name], moved[name]) for name in tables)


SHARED = {
    "shared_bottom": "trunk",
    "mmoe": "experts",
    "ple": "ple.last.experts.*shared",
    "star": "layers.shared",
    "conet": "layers.transfer.items",
}


@pytest.mark.parametrize("name", JOINT)
def test_what_a_joint_model_shares_is_found_and_nothing_else(schema, batches, name):
    task = joint_model(schema, name)
    found = GradientCosines(diagnosis.dense_parameters(task), schema)
    diagnosis.measure(task, [found], batches[:2])
    blocks = {pair["block"] for pair in found.values()["pairs"]}
    assert SHARED[name] in blocks
    assert not any(block.startswith(("towers", "rows.align", "norm.own")) for block in blocks)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("net.trunk.0.bias", "trunk"),
        ("net.ple.last.experts.m_*shared.0.0.weight", "ple.last.experts.*shared"),
        ("net.common.ple.levels.0.gates.m_items.linear.weight", "common.ple.levels.gates.items"),
        ("net.layers.2.shared.weight", "layers.shared"),
        ("embeddings.numeric.dim_4.lines.n_age", "embeddings.numeric.dim_4.lines"),
    ],
)
def test_blocks(name, block):
    assert block_of(name) == block
