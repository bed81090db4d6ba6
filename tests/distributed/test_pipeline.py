"""Torchrec's pipeline trains as the plain loop does, bit by bit, and leaves the model as it was."""

from __future__ import annotations

import signal
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import CacheParams

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import with_kinds, write_kinds
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of
from tools.chaos import differences
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader
from torchrec_xd.distributed import pipeline
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.embeddings import Embeddings
from torchrec_xd.errors import InterruptedRunError, UserError
from torchrec_xd.settings import validate
from torchrec_xd.training import train_run, trainer
from torchrec_xd.training.building import build_sharded
from torchrec_xd.training.trainer import Training, train_steps

DROPOUT = {**PRETRAIN, "dropout": 0.2}


def config_of(feed: Path, pipelined: bool, model=DROPOUT, **changes) -> RunConfig:
    content = {
        "schema": with_kinds(schema_at(feed), specific="post"),
        "model": model,
        "loader": {"batch_size": 48},
        "trainer": {"epochs": 2, "log_every": 1, "threads": 1, "pipeline": pipelined},
        "optimizer": {"schedule": {"warmup_steps": 3, "decay": "linear"}},
        "checkpoint": {"every_steps": 4},
        **changes,
    }
    return validate(RunConfig, content, "test")


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    """Of which no domain's rows divide into batches."""
    folder = write_kinds(write_feed(tmp_path_factory.mktemp("pipeline") / "feed"))
    for name, rows in {"items": 397, "video": 41, "post": 333}.items():
        path = folder / name / "train.parquet"
        pq.write_table(pq.read_table(path).slice(0, rows), path)
    return folder


def train_both_ways(rank: int, feed: Path, runs: Path) -> None:
    """The same runs by the plain loop and in the pipeline, one of these stopped in the middle of an epoch."""
    train_run.process_group = lambda *_: nullcontext(processes_of(rank))
    for pipelined, name in ((False, "plain"), (True, "pipelined")):
        train_run.train(config_of(feed, pipelined), runs / name)
        second = {"model": FINETUNE, "domains": ["post"], "init_from": str(runs / "plain")}
        train_run.train(config_of(feed, pipelined, **second), runs / f"{name}-second")
    own, begun = trainer.forward, []

    def stopped(training, batch):
        begun.append(batch)
        if len(begun) == 6 and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return own(training, batch)

    trainer.forward = stopped
    with pytest.raises(InterruptedRunError, match="stopped after step 6 of"):
        train_run.train(config_of(feed, True), runs / "stopped")
    trainer.forward = own
    train_run.train(config_of(feed, True), runs / "stopped", resume=True)
    diverging = {"optimizer": {"dense": {"lr": 1e30}}}
    said = []
    for pipelined in (False, True):
        with pytest.raises(UserError, match="became") as error:
            train_run.train(config_of(feed, pipelined, **diverging), runs / f"diverged-{pipelined}")
        said.append(str(error.value))
    assert said[0] == said[1]


def test_the_pipeline_trains_as_the_plain_loop_does(feed, tmp_path):
    """With dropout, a teacher, uneven batches, validation and checkpoints between, stop and resume, and a NaN."""
    run_ranks(2, train_both_ways, feed, tmp_path, timeout=200)
    for name in ("pipelined", "stopped"):
        assert differences(tmp_path / "plain", tmp_path / name) == []
    assert differences(tmp_path / "plain-second", tmp_path / "pipelined-second") == []
    assert differences(tmp_path / "plain", tmp_path / "plain-second") != []


@pytest.fixture
def training(feed):
    config = config_of(feed, True)
    with process_group() as processes:
        model, optimizers = build_sharded(config, processes)
        yield (
            Training(model, optimizers, config.trainer, processes),
            Loader(config.schema_in_use, config.loader, "train"),
        )


def forwards(training: Training) -> set[str]:
    """The class of every collection's forward method."""
    (own,) = (part for part in training.model.modules() if isinstance(part, Embeddings))
    return {type(collection.forward).__name__ for collection in (own.bags, own.sequences)}


def test_batches_are_read_ahead_within_an_epoch(training, monkeypatch):
    """While the first batch is computed two more are under way; between epochs anybody may call the model."""
    training, loader = training
    taken, seen, own = [], [], trainer.forward

    def noted(training, batch):
        seen.append((len(taken), forwards(training)))
        return own(training, batch)

    monkeypatch.setattr(trainer, "forward", noted)

    def batches():
        for batch in loader.batches(epochs=2):
            taken.append(batch.position)
            yield batch

    assert forwards(training) == {"method"}
    positions = []
    for step in train_steps(training, batches(), 0, 2 * loader.steps):
        positions.append(step.batch.position)
        ends = step.batch.position.step == loader.steps
        assert forwards(training) == {"method" if ends else "PipelinedForward"}
    assert positions == taken
    assert len(positions) == 2 * loader.steps
    ahead = [min(i + 3, loader.steps + 1) for i in range(loader.steps)]  # the next epoch's first is only looked at
    assert [count for count, _ in seen[: loader.steps]] == ahead
    assert {frozenset(kinds) for _, kinds in seen} == {frozenset({"PipelinedForward"})}


def test_a_loop_that_ends_early_leaves_the_model_as_it_was(training):
    training, loader = training
    with closing(train_steps(training, loader.batches(), 0, loader.steps)) as steps:
        batch = next(steps).batch
    assert forwards(training) == {"method"}
    assert training.model(batch).total_loss().isfinite()


@pytest.mark.parametrize(
    ("device", "chosen", "pipelined"),
    [("cuda", None, True), ("cpu", None, False), ("cuda", False, False), ("cpu", True, True)],
)
def test_a_gpu_is_pipelined_by_default(device, chosen, pipelined):
    settings = trainer.TrainerSettings(pipeline=chosen)
    training = Training(None, None, settings, SimpleNamespace(device=torch.device(device)))
    assert training.pipelined == pipelined


@pytest.mark.parametrize(
    ("cache", "prefetches"),
    [
        (None, False),
        (CacheParams(load_factor=0.2), False),
        (CacheParams(load_factor=0.2, prefetch_pipeline=True), True),
    ],
)
def test_rows_are_fetched_ahead_where_kernels_are_made_for_it(cache, prefetches):
    model = DistributedModelParallel.__new__(DistributedModelParallel)
    torch.nn.Module.__init__(model)
    tables = {"a": SimpleNamespace(cache_params=None), "b": SimpleNamespace(cache_params=cache)}
    model._plan = SimpleNamespace(plan={"embeddings.bags": tables})
    assert pipeline._prefetches(model) == prefetches
