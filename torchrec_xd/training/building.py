"""From a config to its model: built, its sharding planned, sharded over the run's processes."""

from __future__ import annotations

import torch
from torch import nn

from torchrec_xd.config import RunConfig, load_config, load_run
from torchrec_xd.distributed.optimizers import Optimizers, check_device, fuse_optimizers
from torchrec_xd.distributed.process_group import Processes, seed_generators
from torchrec_xd.distributed.sharders import sharders
from torchrec_xd.distributed.sharding import shard
from torchrec_xd.errors import UserError
from torchrec_xd.models import find_model
from torchrec_xd.models.model import Model
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.planner import Cluster, RunPlan, plan_run, this_machine
from torchrec_xd.planner.inputs.gpus import installed_gpu
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.training.compilation import compile_net, not_compiled


def source_config(config: RunConfig, folder: RunFolder | None = None) -> RunConfig | None:
    """The config of the run that has trained what the model is built on; None where it starts from no other run.

    Args:
        config: the run's.
        folder: of a run that has begun: it keeps that config, and the other run may be gone.

    Raises:
        UserError: there is no such run, or it trained a model that this one cannot start from.
    """
    transfer = find_model(config.model.name).transfer
    if config.init_from is None or transfer is None:
        return None
    if folder is not None and folder.source.is_file():
        return load_config(folder.source)
    if config.continue_from is not None and not RunFolder(config.init_from).exists():
        before = load_run(config.continue_from)
        if before.init_from == config.init_from:  # that run is gone, and its weights are in this one's checkpoints
            return source_config(before, RunFolder(config.continue_from))
    source = load_run(config.init_from)
    if continues(config, source):
        return source_config(source, RunFolder(config.init_from))
    if source.model.name != transfer.source:
        raise UserError(
            f"init_from: {config.init_from} trained '{source.model.name}'; "
            f"'{config.model.name}' starts from a run of '{transfer.source}'"
        )
    return source


def source_run(config: RunConfig, folder: RunFolder | None = None) -> SourceRun | None:
    """What `source_config`'s run has trained; arguments and errors as there."""
    source = source_config(config, folder)
    return None if source is None else trained_by(source)


def trained_by(config: RunConfig) -> SourceRun:
    """What a run of this config trains, for models that start from it."""
    return SourceRun(config.schema_in_use, config.model, config.embeddings)


def continues(config: RunConfig, source: RunConfig) -> bool:
    """Whether a run goes on with every weight of a run of the same model: the next slice of time."""
    transfer = find_model(config.model.name).transfer
    return transfer is not None and transfer.slices and source.model.name == config.model.name


def build(config: RunConfig, source: SourceRun | None = None) -> Model:
    """The model with its first weights, its tables still on the meta device.

    Args:
        config: the run's.
        source: what `source_run` found.

    Raises:
        UserError: model, schema and source run do not fit together.
    """
    torch.manual_seed(config.seed)
    arguments = (config.schema_in_use, config.model, config.embeddings, config.seed)
    try:
        return find_model(config.model.name).build(*arguments, *(() if source is None else (source,)))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "Storage size" in str(error):
            raise UserError(
                f"model: its dense layers do not fit into memory ({_first_line(error)}); make them narrower"
            ) from None
        raise


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def run_cluster(processes: Processes) -> Cluster:
    """The cluster that the processes are on, with the GPUs of all ranks (a collective)."""
    if processes.device.type != "cuda":
        return this_machine("cpu", processes.size, processes.local_size)
    gpus = processes.all_gather_object(installed_gpu(processes.device))
    return this_machine("cuda", processes.size, processes.local_size, gpus)


def plan_sharding(model: Model, config: RunConfig, processes: Processes) -> RunPlan:
    """Give the tables their optimizers, whose state takes room, and plan where they go (a collective).

    Rank 0 plans for all.

    Raises:
        UserError: on all ranks: no plan fits, or the plan that the config names is not for this model and cluster.
    """
    check_device(config.optimizer.tables, processes.device)
    fuse_optimizers(model, config.optimizer.tables)
    cluster = run_cluster(processes)

    def planned() -> RunPlan:
        pooling = {f.column: float(f.length) for f in config.schema_in_use.features if f.length is not None}
        kinds = sharders(config.sharding.communication)
        return plan_run(model, kinds, cluster, config.sharding, config.loader.batch_size, pooling)

    return processes.on_main(planned)


def shard_by(plan: RunPlan, model: Model, config: RunConfig, processes: Processes) -> tuple[nn.Module, Optimizers]:
    """The model on its ranks, its net compiled where the config asks for it, and its optimizers (a collective).

    From here on every rank draws numbers of its own (dropout), on CPU and GPU.
    """
    if config.trainer.compile and not not_compiled(config.trainer.compile, processes):
        compile_net(model, config.trainer.compile_cache)
    sharded = shard(model, plan.sharding_plan, config.optimizer, processes, config.sharding.communication)
    seed_generators(config.seed, processes.rank)
    return sharded


def build_sharded(
    config: RunConfig, processes: Processes, source: SourceRun | None = None
) -> tuple[nn.Module, Optimizers]:
    """A run's model on its ranks, with first weights, and its optimizers (a collective).

    Raises:
        UserError: what `build` and `plan_sharding` refuse.
    """
    model = build(config, source)
    return shard_by(plan_sharding(model, config, processes), model, config, processes)
