"""Models small enough for a test, and what is asked of several of them."""

from __future__ import annotations

import torch

from tests.support.unsharded import materialise
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.models import MODELS
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.settings import validate
from torchrec_xd.training.building import build_sharded, source_run
from torchrec_xd.training.inference import checkpoints_of
from torchrec_xd.training.train_run import train

EMBEDDINGS = EmbeddingSettings(init_std=0.5)
JOINT = {
    "shared_bottom": {"widths": [16, 8]},
    "mmoe": {"expert_widths": [16, 8]},
    "ple": {"expert_widths": [16, 8], "levels": 2},
    "star": {"widths": [16, 8]},
    "conet": {"widths": [16, 8]},
}
"""The joint baselines, with settings of their own."""


def settings_of(name, **settings):
    """Validated settings of a model."""
    return MODELS[name].settings.model_validate({"name": name, **settings})


def joint_model(schema, name, **settings):
    """A joint baseline on plain tables."""
    torch.manual_seed(0)
    own = settings_of(name, aligned_dim=8, tower_widths=[4], **{**JOINT[name], **settings})
    return materialise(MODELS[name].build(schema, own, EMBEDDINGS, 0))


def idle(task):
    """Names of parameters that the last backward pass left alone."""
    return [n for n, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]


def train_run(folder, name, **content):
    """Trains in this process, settings nearly at rest so that weights stay where they began; the run's folder."""
    rest = {"tables": {"name": "sgd", "lr": 1e-30}, "dense": {"lr": 1e-30}}
    config = validate(RunConfig, {"optimizer": rest, "embeddings": {"init_std": 0.5}, **content}, "test")
    train(config, folder / name)
    return folder / name


def weights(run):
    """All weights of a run's last checkpoint, by name."""
    config = load_run(run)
    with process_group() as processes:
        model, _ = build_sharded(config, processes, source_run(config))
        checkpoints_of(config, RunFolder(run), processes).load(model, max((run / "checkpoints").glob("step_*")))
        state = model.state_dict()
        return {n: v.local_shards()[0].tensor.clone() if hasattr(v, "local_shards") else v for n, v in state.items()}
