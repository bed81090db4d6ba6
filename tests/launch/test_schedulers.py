"""What Slurm, Kubernetes and AWS Batch would be asked for, as `torchx run --dryrun` has it.

The generated Slurm script is run for real, with an `srun` that starts its tasks on this machine. The Kubernetes client
is no dependency of ours and only holds values here, so a stand-in that holds them takes its place.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torchx.runner import get_runner

from tests.launch.conftest import ROOT
from torchrec_xd.launch import components

MODULE = ["-m", "torchrec_xd.cli"]


@pytest.fixture
def mkt(monkeypatch):
    """MKT on two nodes of eight GPUs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("LOGLEVEL", raising=False)
    return components.mkt(
        pretrain="configs/mkt_cj_pretrain.yaml",
        finetune="configs/mkt_cj_finetune.yaml",
        run_dir="/cluster/runs/mkt",
        j="2x8",
        gpu=8,
        cpu=64,
        memMB=500_000,
        threads=4,
        image="registry.example/xd:1",
        mounts=["type=volume", "src=storage", "dst=/cluster"],
        interface="eth0",
        env={"NCCL_DEBUG": "WARN"},
        max_restarts=3,
        max_retries=2,
    )


ENVIRONMENT = {
    "OMP_NUM_THREADS": "4",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "PET_MAX_RESTARTS": "3",
    "PET_SHUTDOWN_TIMEOUT": "120",
    "GLOO_SOCKET_IFNAME": "eth0",
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_DEBUG": "WARN",
    "LOGLEVEL": "WARNING",
    "TORCHX_TRACKING_EXPERIMENT_NAME": "torchrec-xd",
}


def dry_run(app, scheduler, **options):
    with get_runner() as runner:
        return runner.dryrun(app, scheduler, cfg=options).request


def assert_nothing_of_this_machine(text):
    for own in (socket.gethostname(), str(ROOT), str(Path.home()), sys.prefix, os.environ.get("TMPDIR")):
        if own not in (None, "", "localhost", "/"):
            # by itself: TorchX adds random letters to names, and a short name of a machine may be among them
            assert not re.search(rf"(?<![\w-]){re.escape(own)}(?![\w-])", text), own


def in_a_shell(arguments, tmp_path, **environment):
    """What `bash` with these arguments would start as `python`: its words."""
    (tmp_path / "python").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", *arguments], check=True, capture_output=True, text=True, env={"PATH": path, **environment}
    )
    return json.loads(done.stdout)


def assert_stages_at(words, host, run_id, first_port=29500):
    """Both stages, one after the other, with eight processes on two nodes that meet at `host`."""
    assert words[:4] == ["-m", "torchrec_xd.launch.stages", "--stop-before", "120"]
    place = words.index("--then")
    for port, stage, name in (
        (first_port, words[4:place], "pretrain"),
        (first_port + 1, words[place + 1 :], "finetune"),
    ):
        assert stage[:3] == ["python", "-m", "torchrec_xd.distributed.elastic"]
        torchrun = stage[3 : stage.index("-m", 3)]
        options = dict(zip(torchrun[::2], torchrun[1::2], strict=True))
        assert options["--nnodes"] == "2"
        assert options["--nproc_per_node"] == "8"
        assert options["--rdzv_backend"] == "c10d"
        assert options["--rdzv_endpoint"] == f"{host}:{port}"
        assert options["--rdzv_id"] == run_id
        config, folder = f"configs/mkt_cj_{name}.yaml", f"/cluster/runs/mkt/{name}"
        rest = stage[stage.index("-m", 3) :]
        assert rest[:7] == [*MODULE, "train", config, "--run-dir", folder, "--restartable"]


SRUN = """#!{python}
import json, os, subprocess, sys
groups, words = [[]], sys.argv[1:]
for word in words:
    if word == ":":
        groups.append([])
    else:
        groups[-1].append(word)
for group in groups:
    at = group.index("bash")
    exported = next(w for w in group if w.startswith("--export=ALL,")).removeprefix("--export=ALL,")
    variables = dict(pair.split("=", 1) for pair in exported.split(","))
    done = subprocess.run(group[at:], env={{**os.environ, **variables}}, stdout=subprocess.PIPE, check=True)
    print("TASK", json.dumps([group[:at], variables, json.loads(done.stdout)]), flush=True)
sys.exit(int(os.environ["ENDS_WITH"]))
"""


def submit(script, tmp_path, ends_with, restarts):
    """Run the batch script as Slurm would on its first node."""
    for name, content in {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": "#!/bin/sh\necho REQUEUED $@\n",
        "python": f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n",
    }.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "71",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "node5",
        "SLURM_JOB_ID_HET_GROUP_0": "71",
        "SLURM_RESTART_COUNT": restarts,
        "ENDS_WITH": ends_with,
    }
    done = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=False, env=environment)
    tasks = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("TASK ")]
    return done.returncode, tasks, "REQUEUED requeue 71" in done.stdout


def test_slurm_starts_one_task_on_each_node_and_requeues_what_failed(mkt, tmp_path):
    request = dry_run(mkt, "slurm", partition="gpu", time="01:00:00")
    script = request.materialize()
    assert_nothing_of_this_machine(repr(request))
    nodes = [line.split()[1:] for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert len(nodes) == 2
    for place, options in enumerate(nodes):
        assert set(options) == {
            *(f"--job-name=mkt-{place}", "--requeue", "--partition=gpu", "--time=01:00:00", "--ntasks-per-node=1"),
            *("--gpus-per-task=8", "--cpus-per-task=64", "--mem=500000"),
        }
    code, tasks, requeued = submit(script, tmp_path, ends_with="0", restarts="0")
    assert (code, requeued, len(tasks)) == (0, False, 2)
    for options, variables, words in tasks:
        assert "--kill-on-bad-exit=1" in options
        assert variables == {**ENVIRONMENT, "TORCHX_JOB_ID": variables["TORCHX_JOB_ID"]}
        assert_stages_at(words, "node5", "71", first_port=29500 + 2 * 71)
    for restarts, again in {"0": True, "1": True, "2": False}.items():
        code, _, requeued = submit(script, tmp_path, ends_with="1", restarts=restarts)
        assert (code, requeued) == (1, again)


def on_gpus(**given):
    """Two nodes of eight GPUs, for which nobody has said how many CPUs and how much memory."""
    return components.evaluate(run_dir="/cluster/runs/one", j="2x8", gpu=8, image="registry.example/xd:1", **given)


def test_slurm_is_asked_for_cpus_and_memory_by_gpu():
    script = dry_run(on_gpus(), "slurm", partition="gpu", time="01:00:00").materialize()
    nodes = [line.split() for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert len(nodes) == 2
    for options in nodes:
        assert {"--gpus-per-task=8", "--cpus-per-task=64", "--mem=524288"} <= set(options)
    assert script.count("OMP_NUM_THREADS=4") == 2
    assert "NCCL" not in script


def test_kubernetes_is_asked_for_cpus_and_memory_by_gpu(kubernetes):
    job = dry_run(on_gpus(), "kubernetes", queue="training", namespace="ads").resource
    for task in job["spec"]["tasks"]:
        (container,) = task["template"].spec.containers
        assert container.resources.limits == {"cpu": "64000m", "memory": "524288M", "nvidia.com/gpu": "8"}


@pytest.fixture
def kubernetes(monkeypatch):
    """A Kubernetes client whose objects hold what they are given."""
    models = ModuleType("kubernetes.client.models")
    models.__getattr__ = lambda name: type(name, (SimpleNamespace,), {})
    for name, module in {
        "kubernetes": ModuleType("kubernetes"),
        "kubernetes.client": ModuleType("kubernetes.client"),
        "kubernetes.client.models": models,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.filterwarnings(r"ignore:\sRole mkt configured with restarts")
def test_kubernetes_starts_one_pod_on_each_node(mkt, kubernetes, tmp_path):
    job = dry_run(mkt, "kubernetes", queue="training", namespace="ads").resource
    assert_nothing_of_this_machine(repr(job))
    assert (job["kind"], job["spec"]["queue"], job["spec"]["maxRetry"]) == ("Job", "training", 2)
    assert len(job["spec"]["tasks"]) == 2
    for place, task in enumerate(job["spec"]["tasks"]):
        assert (task["name"], task["replicas"]) == (f"mkt-{place}", 1)
        assert {policy["event"]: policy["action"] for policy in task["policies"]}["PodFailed"] == "RestartJob"
        pod = task["template"].spec
        assert pod.restart_policy == "Never"
        (container,) = pod.containers
        assert container.image == "registry.example/xd:1"
        assert container.resources.limits == {"cpu": "64000m", "memory": "500000M", "nvidia.com/gpu": "8"}
        claims = [v.persistent_volume_claim.claim_name for v in pod.volumes if hasattr(v, "persistent_volume_claim")]
        assert claims == ["storage"]
        assert "/cluster" in [mount.mount_path for mount in container.volume_mounts]
        variables = {variable.name: variable.value for variable in container.env}
        assert variables.items() >= ENVIRONMENT.items()
        # The first pod meets itself; Volcano tells the others its name.
        given, host = ({}, "localhost") if place == 0 else ({"VC_MKT_0_HOSTS": "mkt-0.job"}, "mkt-0.job")
        assert container.command[0] == "bash"
        words = in_a_shell(container.command[1:], tmp_path, **variables, **given)
        assert_stages_at(words, host, job["metadata"]["name"])
        assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,13}[a-z0-9])?", port.name) for port in container.ports)
        assert sorted(port.container_port for port in container.ports) == [29500, 29501]


@pytest.mark.filterwarnings("ignore:Cannot determine resource instance type")
def test_aws_batch_starts_one_container_on_each_node(mkt, tmp_path):
    request = dry_run(mkt, "aws_batch", queue="training", user="someone")
    assert_nothing_of_this_machine(repr(request))
    properties = request.job_def["nodeProperties"]
    assert (properties["numNodes"], properties["mainNode"], request.job_def["type"]) == (2, 0, "multinode")
    assert request.job_def["retryStrategy"]["attempts"] == 2
    (nodes,) = properties["nodeRangeProperties"]
    assert nodes["targetNodes"] == "0:1"
    container = nodes["container"]
    needs = {need["type"]: need["value"] for need in container["resourceRequirements"]}
    assert needs == {"VCPU": "64", "MEMORY": "500000", "GPU": "8"}
    variables = {variable["name"]: variable["value"] for variable in container["environment"]}
    assert variables.items() >= ENVIRONMENT.items()
    assert container["volumes"][0]["efsVolumeConfiguration"]["fileSystemId"] == "storage"
    main = "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"  # on all nodes but the main one
    for given, host in (({}, "localhost"), ({main: "10.0.0.5"}, "10.0.0.5")):
        words = in_a_shell(container["command"][1:], tmp_path, **variables, **given)
        assert_stages_at(words, host, request.name)


def test_one_node_needs_no_port_of_its_own():
    app = components.evaluate(run_dir="runs/x", j="1x2")
    assert "--rdzv_endpoint localhost:0 " in dry_run(app, "slurm").materialize()
