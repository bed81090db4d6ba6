"""`train --continue-from`: a run goes on with another one's model, on new rows."""

import json
import shutil

import pytest
import torch

from tests.support.commands import command
from tests.support.feeds import schema_at, write_feed
from tests.support.placements import SETTINGS, write_placements
from tests.support.placements import schema_at as placements_at
from tests.support.small_models import weights
from tests.support.stops import train_until
from torchrec_xd.checkpoint import Checkpoints
from torchrec_xd.config import RunConfig, load_run
from torchrec_xd.data.loader import Loader
from torchrec_xd.data.shards import ShardSpec
from torchrec_xd.distributed.process_group import process_group
from torchrec_xd.errors import UserError
from torchrec_xd.run_folder import RunFolder
from torchrec_xd.settings import validate
from torchrec_xd.training.building import build_sharded, source_run
from torchrec_xd.training.inference import evaluate
from torchrec_xd.training.train_run import train

WIDTHS = {"aligned_dim": 4, "tower_widths": [4]}
PRETRAIN = {"name": "mkt_pretrain", "expert_widths": [8, 6], **WIDTHS}
FINETUNE = {"name": "mkt_finetune", "widths": [8], "head_widths": [4]}
SINGLE = {"name": "single", "widths": [8, 6]}
CTNET = {"name": "ctnet", "widths": [8, 6]}
MODELS = {
    "single": SINGLE,
    "shared_bottom": {"widths": [8, 6], **WIDTHS},
    "mmoe": {"expert_widths": [8, 6], **WIDTHS},
    "ple": {"expert_widths": [8, 6], "levels": 2, **WIDTHS},
    "star": {"widths": [8, 6], **WIDTHS},
    "conet": {"widths": [8, 6], **WIDTHS},
    "mkt_pretrain": PRETRAIN,
    "mkt_finetune": FINETUNE,
    "ctnet": CTNET,
    "exit": {key: value for key, value in SETTINGS.items() if key != "name"},
}
RATES = {"tables": {"lr": 0.1}, "dense": {"lr": 0.01, "weight_decay": 0.1}}


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Two days of a feed and of placements, and runs on the first day that others start from."""
    folder = tmp_path_factory.mktemp("days")
    for day in (1, 2):
        write_feed(folder / f"feed{day}", rows=96, seed=day)
        write_placements(folder / f"placements{day}", rows=96, seed=day)
    train(config_of(folder, "mkt_pretrain"), folder / "mem")
    train(config_of(folder, "single", domains=["items"]), folder / "tower")
    return folder


def config_of(folder, name, day=1, rows=0, **changes):
    schema = (placements_at if name == "exit" else schema_at)(
        folder / f"{'placements' if name == 'exit' else 'feed'}{day}"
    )
    features = [{**f, "rows": f["rows"] + rows} if "rows" in f else f for f in schema["features"]]
    targets = {"mkt_finetune": ["post"], "ctnet": ["post"], "single": ["post"], "exit": ["home"]}
    sources = {"mkt_finetune": "mem", "ctnet": "tower"}
    content = {
        "schema": {**schema, "features": features},
        "model": {"name": name, **MODELS[name]},
        "loader": {"batch_size": 64},
        "optimizer": RATES,
        "trainer": {"epochs": 1, "threads": 1},
        "evaluate_on": "train",
        **({"domains": targets[name]} if name in targets else {}),
        **({"init_from": str(folder / sources[name])} if name in sources else {}),
        **changes,
    }
    return validate(RunConfig, content, "test")


def by_hand(config, run):
    """What a plain loop makes of a run's weights and optimizer states on the rows of another config."""
    before = load_run(run)
    with process_group(config.trainer) as processes:
        model, optimizers = build_sharded(config, processes, source_run(config))
        fingerprint = before.schema_in_use.fingerprint()
        saved = Checkpoints(run / "checkpoints", before.checkpoint, processes, fingerprint).resume(model, optimizers)
        loader = Loader(config.schema_in_use, config.loader, "train", ShardSpec(seed=config.seed))
        loader.even_out_weights()
        model.train()
        for step, batch in enumerate(loader.batches(epochs=config.trainer.epochs)):
            optimizers.set_lr(step, loader.steps)
            optimizers.zero_grad()
            model(batch).total_loss().backward()
            optimizers.step()
        return saved.step, saved.step + step + 1, plain(model.state_dict())


def plain(state):
    return {
        n: v.local_shards()[0].tensor.clone() if hasattr(v, "local_shards") else v.clone() for n, v in state.items()
    }


def step_of(run):
    return int(max((run / "checkpoints").glob("step_*")).name.rpartition("_")[2])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_on_as_if_it_had_never_stopped(days, tmp_path, name):
    train(config_of(days, name), tmp_path / "first")
    config = config_of(days, name, day=2)
    first, last, expected = by_hand(config, tmp_path / "first")
    content = train(config, tmp_path / "second", continue_from=tmp_path / "first")
    assert 0 < first < last == step_of(tmp_path / "second")
    assert content["train"]["steps"] == last - first
    found = weights(tmp_path / "second")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    said = json.loads((tmp_path / "second" / "continued.json").read_text())
    assert (said["step"], said["grown"]) == (first, {})
    assert not (tmp_path / "second" / "transfer.json").exists()
    assert evaluate(tmp_path / "second", "train")["eval"] == content["eval"]


def test_weights_go_on_alone_where_the_optimizer_is_to_begin_anew(days, tmp_path):
    """With Adagrad's state gone the first step moves a weight by its learning rate, whatever came before."""
    train(config_of(days, "single"), tmp_path / "first")
    config = config_of(days, "single", day=2, continue_from=str(tmp_path / "first"), continue_optimizer=False)
    with process_group(config.trainer) as processes:
        model, optimizers = build_sharded(config, processes)
        fingerprint = config.schema_in_use.fingerprint()
        checkpoints = Checkpoints(tmp_path / "first" / "checkpoints", config.checkpoint, processes, fingerprint)
        checkpoints.load(model, checkpoints.last())
        loader = Loader(config.schema_in_use, config.loader, "train", ShardSpec(seed=config.seed))
        loader.even_out_weights()
        model.train()
        for step, batch in enumerate(loader.batches(epochs=1)):
            optimizers.set_lr(step, loader.steps)
            optimizers.zero_grad()
            model(batch).total_loss().backward()
            optimizers.step()
        expected = plain(model.state_dict())
    train(config, tmp_path / "second")
    found = weights(tmp_path / "second")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with_state = config.model_copy(update={"continue_optimizer": True})
    train(with_state, tmp_path / "third")
    other = weights(tmp_path / "third")
    assert not torch.equal(
        found["embeddings.bags.embedding_bags.t_user.weight"], other["embeddings.bags.embedding_bags.t_user.weight"]
    )
    with pytest.raises(UserError, match="continue_optimizer is false, and continue_from names no run"):
        train(config.model_copy(update={"continue_from": None}), tmp_path / "fourth")
    assert not (tmp_path / "fourth" / "config.yaml").exists()


def test_tables_grow_and_the_command_says_so(days, tmp_path):
    train(config_of(days, "single"), tmp_path / "first")
    config = config_of(days, "single", day=2, rows=5, optimizer={"tables": {"lr": 1e-30}, "dense": {"lr": 1e-30}})
    (tmp_path / "second.yaml").write_text(config.dump())
    done = command(
        "train", tmp_path / "second.yaml", "--run-dir", tmp_path / "second", "--continue-from", tmp_path / "first"
    )
    assert f"goes on from step 2 of {tmp_path}/first; rows of tables: user 40 -> 45, item 60 -> 65" in done.stderr
    old, new = weights(tmp_path / "first"), weights(tmp_path / "second")
    name = "embeddings.bags.embedding_bags.t_user.weight"
    assert (len(old[name]), len(new[name])) == (40, 45)
    torch.testing.assert_close(new[name][:40], old[name], rtol=0, atol=1e-20)
    assert new[name][40:].abs().min() > 0
    assert load_run(tmp_path / "second").continue_from == tmp_path / "first"
    assert json.loads((tmp_path / "second" / "continued.json").read_text())["grown"]["t_user"] == [40, 45]


def test_the_teacher_of_a_second_stage_is_the_first_stage_that_init_from_names(days, tmp_path):
    """Stage 1 goes on and grows, then stage 2 with it; and with the old one, though that is gone."""
    shutil.copytree(days / "mem", tmp_path / "mem1")
    train(config_of(days, "mkt_finetune", init_from=str(tmp_path / "mem1")), tmp_path / "tem1")
    train(config_of(days, "mkt_pretrain", day=2, rows=3), tmp_path / "mem2", continue_from=tmp_path / "mem1")
    newer = config_of(days, "mkt_finetune", day=2, rows=3, init_from=str(tmp_path / "mem2"))
    train(newer, tmp_path / "tem2", continue_from=tmp_path / "tem1")
    stage_1, stage_2 = weights(tmp_path / "mem2"), weights(tmp_path / "tem2")
    taught = [name for name in stage_2 if name.startswith("teacher.")]
    assert taught
    assert all(torch.equal(stage_2[name], stage_1[name.removeprefix("teacher.")]) for name in taught)
    config = config_of(days, "mkt_finetune", day=2, rows=3, init_from=str(tmp_path / "mem1"))
    with pytest.raises(UserError, match="stage 1 was trained with feature"):  # which has the smaller tables
        train(config, tmp_path / "tem3", continue_from=tmp_path / "tem1")
    before = weights(tmp_path / "tem1")
    shutil.rmtree(tmp_path / "mem1")
    same = config_of(days, "mkt_finetune", day=2, init_from=str(tmp_path / "mem1"))
    train(same, tmp_path / "tem3", continue_from=tmp_path / "tem1")
    after = weights(tmp_path / "tem3")
    assert all(torch.equal(after[name], before[name]) for name in taught)
    assert not any(torch.equal(after[name], before[name]) for name in before if name.startswith("net.cross."))


def test_a_continued_run_that_is_killed_begins_or_goes_on_again_and_leaves_the_other_alone(days, tmp_path, monkeypatch):
    train(config_of(days, "single"), tmp_path / "first")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "first").rglob("*")) if path.is_file()}
    config = config_of(
        days, "single", day=2, continue_from=str(tmp_path / "first"), trainer={"epochs": 2, "threads": 1}
    )
    train(config, tmp_path / "whole")
    train_until(2, monkeypatch, config, tmp_path / "killed", how="die")  # before its first checkpoint
    alone = config.model_copy(update={"continue_from": None})
    train(alone, tmp_path / "killed", resume=True)
    train_until(3, monkeypatch, config, tmp_path / "stopped")
    shutil.move(tmp_path / "first", tmp_path / "gone")
    content = train(config, tmp_path / "stopped", restartable=True)
    assert content["train"]["steps"] == 1
    whole = weights(tmp_path / "whole")
    for name in ("killed", "stopped"):
        found = weights(tmp_path / name)
        assert all(torch.equal(found[key], whole[key]) for key in whole)
        assert step_of(tmp_path / name) == 2 + 4
    shutil.move(tmp_path / "gone", tmp_path / "first")
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "first").rglob("*")) if path.is_file()}


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(days):
    train(config_of(days, "single"), days / "first")
    return days / "first"


def schema_with(days, change):
    """The schema of the second day, its features changed one by one; None takes one away."""
    schema = schema_at(days / "feed2")
    return {**schema, "features": [g for f in schema["features"] if (g := change(f)) is not None]}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("shared_bottom", {"domains": ["post"]}, r"first trained 'single', this config 'shared_bottom': a run goes on"),
        ("single", {"model": {**SINGLE, "widths": [8, 5]}}, r"model.widths was \[8, 6\], is \[8, 5\]"),
        ("single", {"embeddings": {"dtype": "fp16"}}, r"embeddings.dtype was 'fp32', is 'fp16'"),
        (
            "single",
            {"optimizer": {"tables": {"name": "sgd"}}},
            r"optimizer.tables.name was 'rowwise_adagrad', is 'sgd'",
        ),
        ("single", {"without": ["hour"]}, r"first was trained with feature 'hour', which is gone: bring it back"),
        (
            "single",
            {"rows": -1},
            r"table of feature 'user' has 39 rows, in .*first it had 40: tables only grow; set rows",
        ),
        (
            "single",
            {"init_from": "first"},
            r"init_from is first, but all weights of 'single' come from .*leave init_from",
        ),
        ("single", {"domains": ["items"]}, r"feature 'style', which is gone"),
    ],
)
def test_what_would_lose_something_is_refused_before_anything_is_written(days, first, tmp_path, name, changes, message):
    if "init_from" in changes:
        changes = {**changes, "init_from": str(days / "tower")}
        message = message.replace("is first", f"is {days}/tower")
    with pytest.raises(UserError, match=message):
        train(config_of(days, name, day=2, **changes), tmp_path / "run", continue_from=first)
    assert not RunFolder(tmp_path / "run").exists()


NEW = {"column": "clicks", "kind": "id", "group": "context", "rows": 60}


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda f: f, [NEW], r"feature 'clicks' is new to .*first: take it away \(`without`\)"),
        (lambda f: {**f, "dim": 8} if f["column"] == "hour" else f, [], r"'dim' of feature 'hour' was 4, is 8: put it"),
        (lambda f: {**f, "mean": 1.0} if f["column"] == "age" else f, [], r"'mean' of feature 'age' was None, is 1.0"),
    ],
)
def test_features_that_mean_something_else_are_refused(days, first, tmp_path, change, more, message):
    schema = schema_with(days, change)
    config = config_of(days, "single", day=2, schema={**schema, "features": [*schema["features"], *more]})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", continue_from=first)
    assert not RunFolder(tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["mod", "xxhash"])
def test_hashed_tables_do_not_grow(days, tmp_path, way):
    """With another number of rows every id would be another row's."""

    def config(rows):
        schema = schema_with(days, lambda f: {**f, "hash": way, "rows": rows} if f["column"] == "hour" else f)
        return config_of(days, "single", day=2, schema=schema)

    train(config(10), tmp_path / "first")
    with pytest.raises(
        UserError, match=f"'hash: {way}' gives an id another row where their number differs: leave rows"
    ):
        train(config(11), tmp_path / "run", continue_from=tmp_path / "first")
    train(config(10), tmp_path / "run", continue_from=tmp_path / "first")


def test_a_run_that_cannot_be_continued_is_refused(days, first, tmp_path, monkeypatch):
    config = config_of(days, "single", day=2)
    with pytest.raises(UserError, match=r"nowhere is no run folder"):
        train(config, tmp_path / "run", continue_from=tmp_path / "nowhere")
    train_until(1, monkeypatch, config, tmp_path / "begun", how="die")
    with pytest.raises(UserError, match=r"begun has no checkpoint yet; train it first"):
        train(config, tmp_path / "run", continue_from=tmp_path / "begun")
    with pytest.raises(
        UserError, match=r"--resume goes on with the run in .*begun, --continue-from begins another one"
    ):
        train(config, tmp_path / "begun", resume=True, continue_from=first)
    with pytest.raises(UserError, match=r"first is not empty; name another folder"):
        train(config, first, continue_from=first)
    assert not RunFolder(tmp_path / "run").exists()
    train(config, tmp_path / "run", continue_from=first)
    with pytest.raises(UserError, match=r"continue_from was '.*first', is '.*begun'"):
        train(config, tmp_path / "run", restartable=True, continue_from=tmp_path / "begun")


def test_another_model_under_the_same_name_is_refused_by_its_weights(days, first, tmp_path):
    """A run folder whose config was edited by hand."""
    shutil.copytree(first, tmp_path / "edited")
    config = tmp_path / "edited" / "config.yaml"
    config.write_text(config.read_text().replace("- 8\n  - 6", "- 8\n  - 7"))
    with pytest.raises(
        UserError, match=r"does not fit this model:\n(.*\n)*  'net.trunk.2.weight': \(7, 8\) expected, \(6, 8\) found"
    ):
        train(
            config_of(days, "single", day=2, model={**SINGLE, "widths": [8, 7]}),
            tmp_path / "run",
            continue_from=tmp_path / "edited",
        )
    assert not RunFolder(tmp_path / "run").exists()
