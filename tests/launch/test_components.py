"""What the components hand to TorchX, what `torchx run` shows of them, and what they refuse."""

import configparser
import shlex

import pytest
from torchx.cli.main import main
from torchx.schedulers import get_scheduler_factories

from tests.launch.conftest import ROOT
from torchrec_xd.launch import components

COMPONENTS = {
    "train": ["--config", "configs/single_cj.yaml", "--run_dir", "runs/x"],
    "pretrain": ["--config", "configs/mkt_cj_pretrain.yaml", "--run_dir", "runs/x"],
    "finetune": ["--config", "configs/mkt_cj_finetune.yaml", "--init_from", "runs/one", "--run_dir", "runs/x"],
    "exit": ["--config", "configs/exit_cj.yaml", "--run_dir", "runs/x"],
    "evaluate": ["--run_dir", "runs/x"],
    "benchmark": ["--command", "step"],
    "mkt": [
        *("--pretrain", "configs/mkt_cj_pretrain.yaml", "--finetune", "configs/mkt_cj_finetune.yaml"),
        *("--run_dir", "runs/x"),
    ],
}
"""Of every component, what it cannot do without."""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def torchx(component, *arguments):
    """The scheduler is .torchxconfig's: local_cwd."""
    main(["run", "--dryrun", f"launch/components.py:{component}", *arguments])


def commands(app, module="torchrec_xd.cli"):
    """What torchrun is asked to run on each node, stage by stage."""
    (role,) = app.roles
    stages = shlex.split(role.args[1].removeprefix("exec python -m torchrec_xd.launch.stages --stop-before 120 "))
    joined = " ".join(shlex.quote(word) for word in stages).split(" --then ")
    assert all(stage.startswith("python -m torchrec_xd.distributed.elastic ") for stage in joined)
    return [shlex.split(stage.partition(f" -m {module} ")[2]) for stage in joined]


@pytest.mark.parametrize("name", COMPONENTS)
def test_help_says_what_every_argument_is(name, capsys):
    with pytest.raises(SystemExit) as ended:
        torchx(name, "--help")
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    wanted = [word for word in COMPONENTS[name] if word.startswith("--")]
    assert wanted
    for required in wanted:
        assert told.partition(f"{required} str ")[2].partition("(required)")[0].count(" ") > 2
    for option, said in {
        "-j str": "nodes x processes",
        "--threads int": "CPU threads",
        "--cpu int": "CPUs per node",
        "--gpu int": "GPUs per node",
        "--memMB int": "memory per node",
        "--image str": "container image",
        "--mounts str": "type=bind",
        "--interface str": "NCCL",
        "--env str": "A=1,B=2",
        "--max_restarts int": "torchelastic",
        "--max_retries int": "scheduler",
        "--stop_before int": "time limit",
    }.items():
        assert said in told.partition(f" {option}")[2].partition("(default")[0], option


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_runs_its_command_on_the_job_it_was_given(name, capsys):
    job = ["-j", "2x4", "--gpu", "4", "--cpu", "16", "--memMB", "9000", "--threads", "3", "--env", "A=1,B=2"]
    torchx(name, *COMPONENTS[name], *job, "--max_restarts", "5")
    told = capsys.readouterr().out
    shown = "".join(told.partition("=== SCHEDULER REQUEST")[0].replace("'", "").replace('"', "").split())
    for part in ("num_replicas:2", "gpu:4", "cpu:16", "memMB:9000", "OMP_NUM_THREADS:3", "PET_MAX_RESTARTS:5", "A:1"):
        assert part in shown, part


def test_the_commands_word_for_word():
    set_up = {"config": "configs/single_cj.yaml", "run_dir": "runs/a b"}
    (train,) = commands(components.train("seed=3", "domains=[coupon]", **set_up))
    assert train[:5] == ["train", "configs/single_cj.yaml", "--run-dir", "runs/a b", "--restartable"]
    assert train[5:] == ["--set", "seed=3", "--set", "domains=[coupon]"]
    (finetune,) = commands(
        components.finetune(config="configs/mkt_cj_finetune.yaml", init_from="runs/one", run_dir="runs/x")
    )
    assert finetune[-2:] == ["--set", "init_from=runs/one"]
    (evaluate,) = commands(components.evaluate(run_dir="runs/x", split="valid", checkpoint="last", out="report.json"))
    assert evaluate == ["evaluate", "runs/x", "--split", "valid", "--checkpoint", "last", "--json", "report.json"]
    (step,) = commands(
        components.benchmark(command="step", args="'a b.yaml' --steps 5", j="1x1"), "torchrec_xd.benchmark"
    )
    assert step == ["step", "a b.yaml", "--steps", "5"]
    assert commands(components.benchmark(command="history", j="1x1"), "torchrec_xd.benchmark") == [["history"]]


def test_the_stages_of_mkt_are_given_their_settings_and_ports():
    app = components.mkt(
        *("seed=3", "pretrain.trainer.epochs=2", "finetune.trainer.epochs=4", "finetune.init_from=elsewhere"),
        pretrain="configs/mkt_cj_pretrain.yaml",
        finetune="configs/mkt_cj_finetune.yaml",
        run_dir="runs/x",
        j="2x2",
    )
    first, second = commands(app)
    assert first[1:5] == ["configs/mkt_cj_pretrain.yaml", "--run-dir", "runs/x/pretrain", "--restartable"]
    assert first[5:] == ["--set", "seed=3", "--set", "trainer.epochs=2"]
    assert second[1:5] == ["configs/mkt_cj_finetune.yaml", "--run-dir", "runs/x/finetune", "--restartable"]
    assert second[5:9] == ["--set", "seed=3", "--set", "trainer.epochs=4"]
    assert second[-2:] == ["--set", "init_from=runs/x/pretrain"]  # the last word, whatever else was said
    (role,) = app.roles
    own_port = "+2*($${SLURM_JOB_ID_HET_GROUP_0:-0}%1500)"
    assert [f":$(({port}{own_port})) " in role.args[1].replace("$$((", "$((") for port in (29500, 29501)] == [
        True,
        True,
    ]
    assert sorted(role.port_map.values()) == [29500, 29501]


@pytest.mark.parametrize(
    ("given", "cpu", "memory", "threads"),
    [
        ({"j": "1x4"}, 4, 8192, 1),
        ({"j": "1x4", "threads": 3}, 12, 8192, 3),
        ({"j": "1x4", "cpu": 16, "memMB": 100}, 16, 100, 1),
        ({"j": "2x8", "gpu": 8}, 64, 8 * 65_536, 4),  # of each node
        ({"j": "1x1", "gpu": 1}, 8, 65_536, 4),
        ({"j": "1x8", "gpu": 8, "threads": 2}, 64, 8 * 65_536, 2),
        ({"j": "1x8", "gpu": 8, "threads": 12}, 96, 8 * 65_536, 12),
        ({"j": "1x8", "gpu": 8, "cpu": 96, "memMB": 900_000}, 96, 900_000, 4),
        ({"j": "1x8", "gpu": 8, "cpu": 16}, 16, 8 * 65_536, 2),  # no more threads than there are CPUs
        ({"j": "1x8", "gpu": 8, "cpu": 9}, 9, 8 * 65_536, 1),
    ],
)
def test_what_a_job_takes_where_nobody_says_otherwise(given, cpu, memory, threads):
    (role,) = components.evaluate(run_dir="runs/x", **given).roles
    assert (role.resource.cpu, role.resource.memMB) == (cpu, memory)
    assert role.resource.gpu == given.get("gpu", 0)
    assert role.env["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train", ["-j", "0x2"], ["-j 0x2", "NODESxPROCESSES", "2x8"]),
        ("train", ["-j", "4"], ["-j 4", "NODESxPROCESSES"]),
        ("train", ["-j", "1:2x4"], ["-j 1:2x4", "NODESxPROCESSES"]),
        ("train", ["-j", "1x2", "--gpu", "4"], ["--gpu 4", "-j 1x2"]),
        ("train", ["-j", "1x4", "--threads", "2", "--cpu", "4"], ["--cpu 4", "need 8"]),
        ("train", ["--memMB", "-1"], ["--memMB -1", "at least 0"]),
        ("train", ["--stop_before", "-1"], ["--stop_before -1", "at least 0"]),
        ("train", ["--threads", "-1"], ["--threads -1", "at least 0"]),
        ("train", ["-j", "1x4", "--gpu", "4", "--cpu", "3"], ["--cpu 3", "need 4"]),
        ("mkt", ["--max_retries", "-1"], ["--max_retries -1", "at least 0"]),
        ("train", ["--mounts", "src=/data,dst=/data"], ["--mounts src=/data", "type"]),
        ("train", ["--config", "configs/singel_cj.yaml"], ["configs/singel_cj.yaml", "no such file", "single_cj.yaml"]),
        ("train", ["trainer.epoch=3"], ["trainer.epoch", "did you mean 'epochs'"]),
        ("train", ["epochs"], ["--set epochs", "KEY.KEY=VALUE"]),
        ("mkt", ["finetune.trainer.epoch=3"], ["configs/mkt_cj_finetune.yaml", "trainer.epoch"]),
        ("mkt", ["--pretrain", "configs/single_cj.yaml"], ["configs/single_cj.yaml", "'single'", "'mkt_pretrain'"]),
        ("exit", ["--config", "configs/single_cj.yaml"], ["'single'", "'exit'", "`train`"]),
        ("evaluate", ["--split", "tset"], ["--split tset", "train, valid, test"]),
        ("evaluate", ["--checkpoint", "first"], ["--checkpoint first", "best, last"]),
        ("benchmark", ["--args", "'a.yaml"], ["--args 'a.yaml", "No closing quotation"]),
    ],
)
def test_bad_arguments_are_told_before_anything_is_submitted(name, arguments, said, capsys):
    given = COMPONENTS[name]
    if arguments[0] in given:
        place = given.index(arguments[0])
        given = [*given[:place], *given[place + 2 :]]
    with pytest.raises(SystemExit) as ended:
        torchx(name, *given, *arguments)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert "APPLICATION" not in told.out
    for part in ("error: ", *said):
        assert part in told.err


def test_the_profiles_hold_only_what_their_schedulers_know():
    # TorchX skips a key it does not know, without a word.
    profiles = configparser.ConfigParser()
    profiles.read(".torchxconfig")
    assert set(profiles.sections()) == {"cli:run", "local_cwd", "slurm", "kubernetes", "aws_batch"}
    assert set(profiles["cli:run"]) == {"scheduler", "workspace"}
    for name, create in get_scheduler_factories().items():
        if name in profiles:
            options = dict(create(session_name="test").run_opts())
            assert set(profiles[name]) <= set(options)
            assert {key for key, option in options.items() if option.is_required} <= set(profiles[name])
