"""`trainer.compile`: the same model in fewer kernels, compiled once however many rows each domain has."""

import copy
import logging
import os
import shutil
import sys
import sysconfig

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config

from tests.support import placements
from tests.support.feeds import schema_at, write_feed
from tests.support.mkt_settings import FINETUNE, PRETRAIN
from tests.support.ranks import run_ranks
from tests.support.sharded import processes_of, sharded
from tests.support.sharded_training import EXIT, task_of
from tests.support.sharded_training import batches as batches_of
from tests.support.sharded_training import settings as optimizers_of
from tests.support.small_models import EMBEDDINGS, joint_model, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.config import RunConfig
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.errors import UserError
from torchrec_xd.models import MODELS
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.schema import Schema
from torchrec_xd.settings import validate
from torchrec_xd.training import building, compilation
from torchrec_xd.training.compilation import compile_net, refuse_missing_compiler
from torchrec_xd.training.train_run import train


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch):
    """Nor does pytest gather the compiler's log of every symbol, which takes longer than compiling."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    torch.compiler.reset()
    counters.clear()


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    return Schema.model_validate(schema_at(write_feed(tmp_path_factory.mktemp("feed"))))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Schema.model_validate(placements.schema_at(placements.write_placements(tmp_path_factory.mktemp("home"))))


def uneven(schema, sizes=(48, 100, 31)):
    """Batches in which the domains have other numbers of rows each time."""
    found = [
        batch
        for size in sizes
        for batch, _ in zip(Loader(schema, LoaderSettings(batch_size=size), "train").batches(), range(2), strict=False)
    ]
    assert len({batch.offsets for batch in found}) > 2
    return found


def built(name, schema, **settings):
    torch.manual_seed(0)
    own = {**PRETRAIN, **settings} if name == "mkt_pretrain" else EXIT.model_dump()
    return materialise(MODELS[name].build(schema, settings_of(**own), EMBEDDINGS, 0))


def assert_equal_steps(compiled, plain, batches):
    """Scores, losses and gradients, each batch."""
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for batch in batches:
        outputs = []
        for model in (compiled, plain):
            model.train()
            model.zero_grad()
            outputs.append(model(batch))
            outputs[-1].total_loss().backward()
        torch.testing.assert_close(outputs[0].score, outputs[1].score, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=1e-6)
        for (name, here), there in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            assert (here.grad is None) == (there.grad is None), name
            if here.grad is not None:
                torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mkt_pretrain", "mmoe", "exit"])
def test_training_is_the_same_and_compiled_once(name, feed, home):
    """The backend here runs what was captured as it is; for kernels, see the next test."""
    schema = home if name == "exit" else feed
    plain = joint_model(schema, name) if name == "mmoe" else built(name, schema)
    compiled = copy.deepcopy(plain)
    compile_net(compiled, backend="eager")
    assert_equal_steps(compiled, plain, uneven(schema))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_what_the_compiler_makes_of_it_is_the_same(feed, tmp_path, monkeypatch):
    """Of a small net: every kernel is a run of the C++ compiler, the first time on a machine."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored afterwards
    monkeypatch.setattr(compilation, "_FOLDER", None)
    schema = feed.only(("post",)).without(("hist", "hour", "topic"))
    torch.manual_seed(0)
    plain = materialise(MODELS["single"].build(schema, settings_of("single", widths=[]), EMBEDDINGS, 0))
    compiled = copy.deepcopy(plain)
    compile_net(compiled, tmp_path / "kernels")
    with config.patch(compile_threads=1):  # to start workers would take longer
        assert_equal_steps(compiled, plain, uneven(schema))
    assert list((tmp_path / "kernels").rglob("*.so")), "kept for later runs"
    compile_net(compiled)
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") != str(tmp_path / "kernels"), "for this run alone"


def test_evaluation_is_not_compiled(home):
    """Its numbers are those of a run without the setting, and hooks of diagnostics see what passes."""
    plain = built("exit", home)
    compiled, seen = copy.deepcopy(plain), []
    compile_net(compiled, backend="eager")
    compiled.net.ipn.register_forward_hook(lambda *given: seen.append(given))
    batch = uneven(home)[0]
    for model in (compiled, plain):
        model.eval()
    assert all(torch.equal(score, plain(batch).score[task]) for task, score in compiled(batch).score.items())
    assert seen
    assert not counters["stats"]


def test_a_teacher_is_compiled_too(feed):
    source = SourceRun(feed, settings_of(**PRETRAIN), EMBEDDINGS)
    torch.manual_seed(0)
    plain = materialise(
        MODELS["mkt_finetune"].build(feed.only(("post",)), settings_of(**FINETUNE), EMBEDDINGS, 0, source)
    )
    compiled = copy.deepcopy(plain)
    compile_net(compiled, backend="eager")
    assert_equal_steps(compiled, plain, uneven(feed.only(("post",))))
    assert counters["stats"]["unique_graphs"] == 2


def losses(rank, content, compiles):
    """Of some steps on the ranks, under DDP."""
    schema = Schema.model_validate(content)
    task = task_of(schema)
    if compiles:
        compile_net(task, backend="eager")
    model, optimizers = sharded(task, optimizers_of("adagrad"), processes_of(rank))
    found = []
    for step, batch in enumerate(batches_of(schema, rank, 2)):
        optimizers.set_lr(step, 3)
        optimizers.zero_grad()
        loss = model(batch).total_loss()
        loss.backward()
        optimizers.step()
        found.append(loss.item())
    return found, sorted(model.state_dict()), counters["stats"]["unique_graphs"]


def both(rank, content):
    return [losses(rank, content, compiles) for compiles in (False, True)]


def test_two_ranks_train_compiled_as_they_do_without(tmp_path):
    content = placements.schema_at(placements.write_placements(tmp_path))
    for plain, compiled in run_ranks(2, both, content, timeout=180):
        assert compiled[0] == pytest.approx(plain[0], rel=1e-5)
        assert compiled[1] == plain[1]
        assert plain[2] == 0
        assert compiled[2] > 0


@pytest.mark.parametrize(
    ("device", "hidden", "told"),
    [
        ("cpu", "compiler", r"needs a compiler \(g\+\+\) on PATH for cpu; .*leave trainer\.compile out"),
        ("cpu", "headers", r"needs Python's header files \(Python\.h\) for cpu"),
        ("cuda", "compiler", r"needs a compiler \(gcc or clang\) on PATH for cuda"),
        ("cuda", "triton", r"needs the package triton for cuda"),
    ],
)
def test_a_machine_that_cannot_compile_is_told_so(device, hidden, told, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name if hidden == "headers" else tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None if hidden == "compiler" else f"/bin/{name}")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if hidden == "triton" else sys.modules[__name__].__spec__
    )
    with pytest.raises(UserError, match=told):
        refuse_missing_compiler(True, None, torch.device(device))
    refuse_missing_compiler("auto", None, torch.device(device))
    refuse_missing_compiler(False, None, torch.device(device))


def single(feed, **trainer):
    content = {
        "schema": schema_at(feed.root),
        "model": {"name": "single", "widths": [4]},
        "domains": ["post"],
        "trainer": {"threads": 1, **trainer},
    }
    return validate(RunConfig, content, "test")


def test_it_is_told_before_the_folder_is_made(feed, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"trainer\.compile: true needs a compiler \(no-such-compiler\) on PATH"):
        train(single(feed, compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_trains_without_a_compiler_and_says_so(feed, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = train(single(feed, compile="auto"), tmp_path / "run")
    assert found["eval"] == train(single(feed), tmp_path / "plain")["eval"]
    said = "trainer.compile: auto: not compiled: a compiler (no-such-compiler) on PATH is missing"
    assert said in (tmp_path / "run" / "log.txt").read_text()
    assert "trainer.compile" not in (tmp_path / "plain" / "log.txt").read_text()


def test_auto_compiles_where_it_can(feed, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(building, "compile_net", lambda model, cache: compiled.append(cache))
    train(single(feed, compile="auto", compile_cache=str(tmp_path / "kernels")), tmp_path / "run")
    assert compiled == [tmp_path / "kernels"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"trainer\.compile_cache .*/file/kernels cannot be written"):
        train(single(feed, compile="auto", compile_cache=str(tmp_path / "file" / "kernels")), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert "trainer.compile" not in (tmp_path / "run" / "log.txt").read_text()
