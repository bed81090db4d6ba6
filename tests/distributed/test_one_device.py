"""One process on a device that is not the CPU: `meta` stands in for a GPU, so nothing here needs one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributed import _remote_device

from tests.support.feeds import schema_at, write_feed
from torchrec_xd.config import RunConfig
from torchrec_xd.data.predictions import PredictionColumns
from torchrec_xd.distributed import sharding
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.outputs import scores_on_cpu
from torchrec_xd.settings import validate
from torchrec_xd.training.building import build, plan_sharding, shard_by

META = torch.device("meta")


def test_every_weight_lies_on_the_device(tmp_path, monkeypatch):
    """Without DDP, which one process does not need, nobody else moves the dense part there."""
    monkeypatch.setattr(sharding, "Optimizers", lambda *parts: None)  # meta tables have no fused optimizer
    config = validate(
        RunConfig,
        {
            "schema": schema_at(write_feed(tmp_path / "feed", rows=64)),
            "model": {"name": "mkt_pretrain", "expert_widths": [8, 6], "aligned_dim": 4, "tower_widths": [4]},
        },
        "test",
    )
    with process_group() as processes:
        model = build(config)
        plan = plan_sharding(model, config, processes)
        for tables in plan.sharding_plan.plan.values():
            for table in tables.values():
                for piece in table.sharding_spec.shards:
                    piece.placement = _remote_device("rank:0/meta")
        sharded, _ = shard_by(plan, model, config, replace(processes, device=META))
        weights = {**dict(sharded.named_parameters()), **dict(sharded.named_buffers())}
        assert len(weights) > 20
        assert {name: str(w.device) for name, w in weights.items() if w.device != META} == {}


class OnDevice(torch.Tensor):
    """A tensor whose values cannot be read before it is copied to the CPU, as on a GPU."""

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")

    copies = 0

    def cpu(self):
        OnDevice.copies += 1
        return self.as_subclass(torch.Tensor)


def test_predictions_are_copied_from_the_device_once():
    columns = PredictionColumns("user", ("click@post",), ("click@post/own",))
    with pytest.raises(TypeError, match="cuda"):
        torch.tensor([1.0]).as_subclass(OnDevice).float().numpy()
    before, user_B = OnDevice.copies, np.array([7, 8])
    given = {"click@post": [0.25, 1.5], "click@post/own": [-2.0, 1.5]}
    scores = {name: torch.tensor(values).as_subclass(OnDevice) for name, values in given.items()}
    table = columns.table(user_B, scores_on_cpu(scores, tuple(scores)).numpy())
    assert OnDevice.copies == before + 1
    assert table.to_pydict() == {
        "user": [7, 8],
        "prob_click@post": [0.25, 1.0],
        "score_click@post/own": [-2.0, 1.5],
    }
    assert table["user"].to_numpy().dtype == np.int64
