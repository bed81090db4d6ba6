"""Models with more than weights to keep alike, on gloo ranks against plain modules: STAR, and MKT with its layers."""

import pytest
import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import assert_same, batches, gathered
from tests.support.small_models import EMBEDDINGS, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.distributed.optimizers import DenseOptimizerSettings, OptimizerSettings, TableOptimizerSettings
from torchrec_xd.models import MODELS
from torchrec_xd.schema import Schema

SETTINGS = {
    "star": {"aligned_dim": 8, "tower_widths": [4], "widths": [16, 8]},
    "mkt_pretrain": {
        "aligned_dim": 8,
        "tower_widths": [4],
        "expert_widths": [16, 8],
        "extractor": "star",
        "gamma": 0.0,
    },
}
"""Without PDL, whose mean over a rank's rows of a domain is not the mean over all ranks'."""
RATES = OptimizerSettings(
    tables=TableOptimizerSettings(name="sgd", lr=0.1), dense=DenseOptimizerSettings(lr=0.01, eps=1e-4, weight_decay=0.1)
)
"""A bias in front of a normalisation has rounding errors for a gradient: without `eps` Adam makes steps of them."""


def task_of(schema, name):
    torch.manual_seed(0)
    return MODELS[name].build(schema, settings_of(name, **SETTINGS[name]), EMBEDDINGS, 0)


def train_sharded(rank, content, name):
    schema, world = Schema.model_validate(content), processes_of(rank)
    model, optimizers = sharded(task_of(schema, name), RATES, world)
    for step, batch in enumerate(batches(schema, rank, world.size)):
        optimizers.set_lr(step, 10)
        optimizers.zero_grad()
        model(batch).total_loss().backward()
        optimizers.step()
    return {key: gathered(value, world) for key, value in model.state_dict().items()}


def train_plain(schema, name, ranks):
    """Each rank's rows are normalised by themselves; running statistics are the mean of what the ranks counted."""
    task = materialise(task_of(schema, name))
    tables = torch.optim.SGD([p for key, p in task.named_parameters() if "t_" in key], lr=0.1)
    rest = [p for key, p in task.named_parameters() if "t_" not in key]
    dense = torch.optim.AdamW(rest, lr=0.01, eps=1e-4, weight_decay=0.1)
    for parts in zip(*(batches(schema, rank, ranks) for rank in range(ranks)), strict=True):
        before = {key: value.clone() for key, value in task.net.named_buffers()}
        counted, losses = [], []
        for part in parts:
            losses.append(task(part).total_loss())
            counted.append({key: value.clone() for key, value in task.net.named_buffers()})
            for key, value in task.net.named_buffers():
                value.data = before[key].clone()
        for key, value in task.net.named_buffers():
            value.data = sum(rank[key] for rank in counted) / ranks
        for optimizer in (tables, dense):
            optimizer.zero_grad()
        (sum(losses) / ranks).backward()
        for optimizer in (tables, dense):
            optimizer.step()
    return {key: value.detach() for key, value in task.state_dict().items()}


@pytest.mark.parametrize(("name", "norm"), [("star", "net.norm"), ("mkt_pretrain", "net.common.star.norm")])
def test_it_trains_sharded_as_it_does_plain_and_all_ranks_evaluate_alike(tmp_path, name, norm):
    content = schema_at(write_feed(tmp_path))
    expected = train_plain(Schema.model_validate(content), name, 2)
    mean = expected[f"{norm}.own.m_post.mean"]
    assert not torch.equal(mean, torch.zeros(28))
    for weights in run_ranks(2, train_sharded, content, name):
        assert_same(weights, expected)
