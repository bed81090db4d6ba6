"""MKT's warm start on ranks: one checkpoint weight becomes two, whatever the plans of the two runs."""

from pathlib import Path

import torch

from tests.support.feeds import schema_at, write_feed
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import gathered
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, CheckpointSettings, transfer
from torchrec_xd.distributed.optimizers import OptimizerSettings
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.models.mkt import TRANSFER, FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.planner import ShardingSettings
from torchrec_xd.schema import Schema

EMBEDDINGS = EmbeddingSettings(init_std=0.5)
MEM = PretrainSettings(expert_widths=(8, 6), aligned_dim=4, tower_widths=(4,), extractor="star")
TEM = FinetuneSettings(widths=(8,), head_widths=(4,), warm_start=True, knowledge="common_and_independent")


def begin(rank: int, content: dict, folder: str) -> None:
    schema, processes = Schema.model_validate(content), processes_of(rank)
    by_table, by_rows = (ShardingSettings(types=(kind,)) for kind in ("table_wise", "row_wise"))
    task = build_pretrain(schema, MEM, EMBEDDINGS, 0)
    mem, optimizers = sharded(task, OptimizerSettings(), processes, by_table)
    checkpoints = Checkpoints(Path(folder), CheckpointSettings(), processes, schema.fingerprint())
    checkpoints.save(mem, optimizers, LoaderState(0, 1), 1, None)
    saved = {name: gathered(value, processes) for name, value in mem.state_dict().items()}

    target = schema.only(("post",))
    here, there = SourceRun(target, TEM, EMBEDDINGS), SourceRun(schema, MEM, EMBEDDINGS)
    tem, _ = sharded(build_finetune(target, TEM, EMBEDDINGS, 1, there), OptimizerSettings(), processes, by_rows)
    prefixes = {**TRANSFER.prefixes, **TRANSFER.further(here, there)}
    report = transfer(tem, checkpoints.last(), prefixes, TRANSFER.prunable)
    assert all(name.startswith(("net.gates.", "net.heads.")) for name in report.fresh)
    found = {name: gathered(value, processes) for name, value in tem.state_dict().items()}
    tables = [name for name in report.loaded if ".t_user." in name]
    assert len(tables) == 2  # the teacher's and its own
    for name in report.loaded:
        source = name.removeprefix("teacher.")
        if not name.startswith("teacher."):
            source = source.replace("net.cross.", "net.independent.m_post.").replace(
                "net.vectors.", "net.common.vectors."
            )
        assert torch.equal(found[name], saved[source]), name


def test_tables_of_two_plans_begin_as_the_checkpoints(tmp_path):
    run_ranks(2, begin, schema_at(write_feed(tmp_path / "feed", rows=64)), str(tmp_path / "run"), timeout=120)
