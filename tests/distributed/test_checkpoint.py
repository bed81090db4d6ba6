"""Checkpoints of real sharded models on real gloo ranks."""

import errno
import itertools
import json
import os
import pickle
import resource
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tests.support.feeds import schema_at, write_feed
from tests.support.kinds import with_kinds, write_kinds
from tests.support.local_state import local
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from torchrec_xd.batch import LoaderState
from torchrec_xd.checkpoint import Checkpoints, CheckpointSettings, read_saved, transfer, write_saved
from torchrec_xd.checkpoint import checkpoints as saving
from torchrec_xd.checkpoint.reading import Reader
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.optimizers import DenseOptimizerSettings, OptimizerSettings
from torchrec_xd.embeddings import EmbeddingSettings
from torchrec_xd.errors import OutageError, UserError
from torchrec_xd.models.mkt import TRANSFER, FinetuneSettings, PretrainSettings, build_finetune, build_pretrain
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema

MODEL = PretrainSettings(expert_widths=(8, 6), aligned_dim=4, tower_widths=(4,), dropout=0.2)
OPTIMIZERS = OptimizerSettings(dense=DenseOptimizerSettings(lr=0.01, weight_decay=0.01))


def model_of(schema, seed, processes):
    torch.manual_seed(seed)
    task = build_pretrain(schema, MODEL, EmbeddingSettings(dtype="fp16"), seed)
    return sharded(task, OPTIMIZERS, processes)


def advance(model, optimizers, batches):
    for batch in batches:
        optimizers.set_lr(0, 1)
        optimizers.zero_grad()
        model(batch).total_loss().backward()
        optimizers.step()


def resume_midway(rank: int, content: dict, folder: str, threads: tuple[int, int] = (1, 1)) -> list[str]:
    """Names of all weights and optimizer states that differ between a run and one that was resumed half way.

    `threads` are those of the first run and of the resumed one: tables lie in as many groups, and where they are not
    equally many, sums of the dense part may be rounded in another order.
    """
    torch.set_num_threads(threads[0])
    schema, processes = Schema.model_validate(content), processes_of(rank)
    share = ShardSpec(rank, processes.size, seed=0)
    loader = Loader(schema, LoaderSettings(batch_size=64), "train", share)
    checkpoints = Checkpoints(Path(folder), CheckpointSettings(), processes, schema.fingerprint())

    model, optimizers = model_of(schema, 0, processes)
    stream = loader.batches()
    advance(model, optimizers, [next(stream) for _ in range(3)])
    checkpoints.save(model, optimizers, LoaderState(0, 3), 3, None)
    advance(model, optimizers, [next(stream) for _ in range(3)])
    expected = local({"model": model.state_dict(), "optimizer": optimizers.state.state_dict()["state"]})

    torch.set_num_threads(threads[1])
    model, optimizers = model_of(schema, 1, processes)
    saved = checkpoints.resume(model, optimizers)
    assert saved is not None
    stream = loader.batches(saved.position)
    advance(model, optimizers, [next(stream) for _ in range(3)])
    got = local({"model": model.state_dict(), "optimizer": optimizers.state.state_dict()["state"]})
    assert got.keys() == expected.keys()
    assert any(key.startswith("optimizer.tables") for key in got)
    same = torch.equal if threads[0] == threads[1] else partial(torch.allclose, rtol=2e-3, atol=1e-6)
    return [key for key in got if not same(got[key], expected[key])]


@pytest.mark.parametrize(("ranks", "all_kinds"), [(1, False), (2, False), (2, True)])
def test_a_resumed_run_is_the_undisturbed_one_bit_by_bit(tmp_path, ranks, all_kinds):
    content = schema_at(write_feed(tmp_path / "feed"))
    if all_kinds:
        content = with_kinds(schema_at(write_kinds(tmp_path / "feed")), specific="post")
    assert run_ranks(ranks, resume_midway, content, str(tmp_path / "run"), timeout=120) == [[]] * ranks


@pytest.mark.parametrize("threads", [(2, 2), (3, 1), (1, 2)])
def test_a_run_goes_on_with_other_threads(tmp_path, threads):
    content = schema_at(write_feed(tmp_path / "feed"))
    assert run_ranks(1, resume_midway, content, str(tmp_path / "run"), threads, timeout=120) == [[]]


def attacks(rank: int, content: dict, folder: str) -> None:
    """One process, one sharded model, many ways in which a checkpoint can be wrong."""
    schema, processes, base = Schema.model_validate(content), processes_of(rank), Path(folder)
    model, optimizers = model_of(schema, 0, processes)
    settings = CheckpointSettings(keep=2)
    checkpoints = Checkpoints(base / "checkpoints", settings, processes, schema.fingerprint())
    assert checkpoints.resume(model, optimizers) is None
    advance(model, optimizers, [next(Loader(schema, LoaderSettings(batch_size=64), "train").batches())])
    for step, score in ((1, 0.9), (2, 0.7), (3, 0.8), (4, None)):
        checkpoints.save(model, optimizers, LoaderState(0, step), step, score)
    names = [folder.name for folder in sorted((base / "checkpoints").iterdir())]
    assert names == ["step_000000001", "step_000000003", "step_000000004"]  # the last two and the best
    assert checkpoints.best().name == "step_000000001"
    assert checkpoints.last().name == "step_000000004"

    refuse_other_schemas(checkpoints, model)
    keep_the_last_when_saving_fails(checkpoints, model, optimizers)
    pass_over_what_is_damaged(base, checkpoints, model, optimizers)
    refuse_foreign_pickles(base, checkpoints, model)
    refuse_what_does_not_fit(base, checkpoints, schema, processes)


def refuse_other_schemas(checkpoints, model):
    other = Checkpoints(checkpoints.directory, checkpoints.settings, checkpoints.processes, "beef")
    with pytest.raises(UserError, match="incompatible schema"):
        other.load(model, checkpoints.last())


def keep_the_last_when_saving_fails(checkpoints, model, optimizers):
    def full_disk(_state, checkpoint_id):
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise OSError("No space left on device")

    whole, saving.save_distributed = saving.save_distributed, full_disk
    with pytest.raises(UserError, match=r"step 5 could not be written to .*: No space left on device"):
        checkpoints.save(model, optimizers, LoaderState(0, 5), 5, None)
    saving.save_distributed = whole
    assert checkpoints.last().name == "step_000000004"
    assert checkpoints.resume(model, optimizers).step == 4
    checkpoints.save(model, optimizers, LoaderState(0, 5), 5, None)  # and the next one succeeds
    assert checkpoints.last().name == "step_000000005"
    assert not list(checkpoints.directory.glob("partial_*"))


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch /tmp/never",))


def without_checksums(folder):
    """An attacker would write fitting ones."""
    write_saved(folder, replace(read_saved(folder), files={}))


def pass_over_what_is_damaged(base, checkpoints, model, optimizers):
    folder = base / "damaged"
    shutil.copytree(checkpoints.directory, folder)
    copy = Checkpoints(folder, checkpoints.settings, checkpoints.processes, checkpoints.schema)
    steps = sorted(int(path.name[-9:]) for path in folder.iterdir())
    said = []
    newest = copy.last()
    data = next(iter(newest.glob("__0_*")))
    data.write_bytes(data.read_bytes()[:-1])
    assert copy.resume(model, optimizers, said.append).step == steps[-2]
    assert (
        f"step_{steps[-1]:09d} is damaged: {data.name} is missing, cut short or changed; trying the next one" in said[0]
    )
    with pytest.raises(UserError, match="is damaged"):
        copy.load(model, newest)
    (folder / f"step_{steps[-2]:09d}" / "position.json").write_text('{"step":')
    (folder / f"step_{steps[-3]:09d}" / ".metadata").unlink()
    with pytest.raises(UserError, match=f"none of the {len(steps)} checkpoints in .* is whole"):
        copy.resume(model, optimizers, said.append)


def refuse_foreign_pickles(base, checkpoints, model):
    for number, (content, said) in enumerate(
        [(pickle.dumps(Bomb()), "refused to load posix.system"), (b"junk", "not the index"), (b"", "not the index")]
    ):
        folder = base / f"bomb_{number}"
        shutil.copytree(checkpoints.last(), folder)
        (folder / ".metadata").write_bytes(content)
        without_checksums(folder)
        with pytest.raises(UserError, match=said):
            checkpoints.load(model, folder)
    folder = base / "outside"
    shutil.copytree(checkpoints.last(), folder)
    metadata = Reader(folder).read_metadata()
    info = next(iter(metadata.storage_data.values()))
    info.relative_path = "../checkpoints/secret"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    without_checksums(folder)
    with pytest.raises(UserError, match="points outside"):
        checkpoints.load(model, folder)
    with pytest.raises(UserError, match="is no checkpoint"):
        read_saved(base)


def refuse_what_does_not_fit(base, checkpoints, schema, processes):
    def student(**changes):
        settings = MODEL.model_copy(update=changes)
        pretrained = SourceRun(schema, settings, EmbeddingSettings(dtype="fp16"))
        task = build_finetune(schema.only(("post",)), FinetuneSettings(widths=(4,)), EmbeddingSettings(), 0, pretrained)
        return sharded(task, OPTIMIZERS, processes)[0]

    folder, model = checkpoints.last(), student()
    manifest = transfer(model, folder, TRANSFER.prefixes, TRANSFER.prunable)
    assert {*manifest.loaded, *manifest.fresh} == set(model.state_dict())
    loaded = local({k: v for k, v in model.state_dict().items() if k.startswith("teacher.")})
    saved = local(sharded_weights(checkpoints, schema, processes))
    assert all(torch.equal(value, saved[name.removeprefix("teacher.")]) for name, value in loaded.items())
    wider = student(aligned_dim=5)
    before = local(wider.state_dict())
    with pytest.raises(UserError, match=r"hfa\.m_post\.align\.weight.*\(5, 12\) expected, \(4, 12\) found"):
        transfer(wider, folder, TRANSFER.prefixes, TRANSFER.prunable)
    with pytest.raises(UserError, match=r"'net\.towers\.[^']*': nothing takes it"):
        transfer(student(), folder, TRANSFER.prefixes, ("embeddings.", "net.common.", "net.independent."))
    assert all(torch.equal(value, before[name]) for name, value in local(wider.state_dict()).items())


def sharded_weights(checkpoints, schema, processes):
    model, _ = model_of(schema, 7, processes)
    checkpoints.load(model, checkpoints.last())
    return model.state_dict()


def test_what_a_checkpoint_may_not_be(tmp_path):
    run_ranks(1, attacks, schema_at(write_feed(tmp_path / "feed")), str(tmp_path), timeout=120)
    assert json.loads((tmp_path / "checkpoints" / "step_000000005" / "position.json").read_text())["world_size"] == 1


@contextmanager
def full_disk(bytes_left=20_000):
    """No file of this process can grow further than so many bytes: the kernel says so in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder):
    """Root may write everywhere, so it becomes nobody meanwhile."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextmanager
def gone_disk():
    """The server of the disk is gone while files are written."""

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", stale)
        yield


def cannot_write(rank: int, content: dict, folder: str) -> None:
    schema, processes = Schema.model_validate(content), processes_of(rank)
    model, optimizers = model_of(schema, 0, processes)
    loader = Loader(schema, LoaderSettings(batch_size=64), "train", ShardSpec(rank, processes.size))
    checkpoints = Checkpoints(Path(folder), CheckpointSettings(keep=1), processes, schema.fingerprint())
    advance(model, optimizers, itertools.islice(loader.batches(), 1))
    checkpoints.save(model, optimizers, LoaderState(0, 1), 1, None)
    saved = local(model.state_dict())
    advance(model, optimizers, itertools.islice(loader.batches(), 1))
    for hindrance, said in (
        (full_disk() if rank == 1 else nullcontext(), "File too large"),  # of one rank alone
        (read_only(checkpoints.directory) if rank == 0 else nullcontext(), "Permission denied"),
    ):
        with hindrance, pytest.raises(UserError, match=rf"step 2 could not be written to .*{said}.*\n.*untouched"):
            checkpoints.save(model, optimizers, LoaderState(0, 2), 2, None)
        processes.barrier()  # both have left the hindrance behind
        assert checkpoints.last().name == "step_000000001"
    with (
        gone_disk() if rank == 1 else nullcontext(),
        pytest.raises(OutageError, match=r"outage: .*step 2 .*Stale file"),
    ):
        checkpoints.save(model, optimizers, LoaderState(0, 2), 2, None)
    other, its = model_of(schema, 1, processes)
    assert checkpoints.resume(other, its).step == 1
    assert all(torch.equal(value, saved[name]) for name, value in local(other.state_dict()).items())
    checkpoints.save(model, optimizers, LoaderState(0, 2), 2, None)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_000000002"]


def test_where_one_rank_cannot_write_all_say_so_and_the_last_checkpoint_stays(tmp_path):
    run_ranks(2, cannot_write, schema_at(write_feed(tmp_path / "feed")), str(tmp_path / "run"))
