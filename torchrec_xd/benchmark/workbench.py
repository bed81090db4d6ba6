"""A model ready to be stepped: built, build_sharded and given batches as a run would, without a run's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from torch import Tensor

from torchrec_xd.batch import Batch
from torchrec_xd.benchmark import synthetic
from torchrec_xd.benchmark.measure import seconds
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.process_group import Processes, process_group
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.training.building import build_sharded
from torchrec_xd.training.trainer import Training, train_step

WARM_UP = 5
"""Steps before anything is timed."""
TOTAL_STEPS = 1_000_000
"""Total steps for the learning rate schedule: the rate stays where it begins."""


@dataclass
class Workbench:
    """A model on its ranks."""

    config: RunConfig
    training: Training
    loader: Loader
    batches: list[Batch]
    """In memory, on the device."""
    steps: int = 0

    @property
    def processes(self) -> Processes:
        """The processes."""
        return self.training.processes

    def step(self, batch: Batch | None = None) -> Tensor:
        """One step of training on the next batch in memory, or on the one given; the loss."""
        batch = self.batches[self.steps % len(self.batches)] if batch is None else batch
        self.training.optimizers.set_lr(self.steps, TOTAL_STEPS)
        done = train_step(self.training, batch)
        self.steps += 1
        return done.loss

    def run(self, steps: int) -> None:
        """Several steps on batches in memory."""
        for _ in range(steps):
            self.step()

    @property
    def rows(self) -> float:
        """Rows of a batch in memory, on average, on this rank."""
        return sum(len(batch) for batch in self.batches) / len(self.batches)

    def speed(self, steps: int) -> float:
        """Rows per second, over all ranks, of steps on batches in memory."""
        return steps * self.rows * self.processes.size / seconds(partial(self.run, steps))


@contextmanager
def workbench(config: RunConfig, threads: int = 0, batches: int = 8) -> Iterator[Workbench]:
    """A warm model of `config` and its first batches; torchrun's process group, or one of this process alone."""
    with process_group(config.trainer.model_copy(update={"threads": threads})) as processes:
        loader = Loader(
            config.schema_in_use, config.loader, "train", ShardSpec(processes.rank, processes.size, config.seed)
        )
        read = [batch.to(processes.device) for batch in islice(loader.batches(epochs=1000), batches)]
        model, optimizers = build_sharded(config, processes, stage1_of(config))
        model.train()
        bench = Workbench(config, Training(model, optimizers, config.trainer, processes), loader, read)
        bench.run(WARM_UP)
        yield bench


def stage1_of(config: RunConfig) -> SourceRun | None:
    """A first stage of MKT for a second one: its weights do not matter for speed, so no run is needed."""
    if config.model.name != "mkt_finetune":
        return None
    schema = config.data_schema.model_dump(mode="json", by_alias=True)
    trained = synthetic.config("mkt_pretrain", schema, embeddings=config.embeddings.model_dump())
    return SourceRun(trained.schema_in_use, trained.model, trained.embeddings)


@contextmanager
def synthetic_run(
    model: str, rows_per_table: int, batch_size: int, precision: str, dtype: str, optimizer: str = "rowwise_adagrad"
) -> Iterator[RunConfig]:
    """The config of one of `synthetic.MODELS`, its rows written to a folder that vanishes afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        root = Path(folder)
        synthetic.write_domains(root, 64 * batch_size, rows_per_table)
        schema = synthetic.domains_schema(root, rows_per_table)
        settings = {
            "loader": {"batch_size": batch_size},
            "trainer": {"precision": precision},
            "embeddings": {"dtype": dtype},
            "optimizer": {"tables": {"name": optimizer}},
        }
        if model == "mkt_finetune":
            settings["init_from"] = "stage1"
        yield synthetic.config(model, schema, **settings)
