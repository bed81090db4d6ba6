"""Jobs go to Kubernetes and AWS Batch through TorchX's own clients, to stand-ins that keep what they were sent."""

import json
import urllib.request

import pytest
from torchx.runner import get_runner
from torchx.specs import AppState

from tests.launch.conftest import ROOT
from tests.support.kubernetes_api import kubernetes_api
from torchrec_xd.launch import components

kubernetes_validate = pytest.importorskip("kubernetes_validate")
pytest.importorskip("kubernetes")
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")

VERSIONS = ("1.30.0", kubernetes_validate.latest_version())


@pytest.fixture
def mkt(monkeypatch):
    """Both stages of MKT on two nodes of two processes."""
    monkeypatch.chdir(ROOT)
    return components.mkt(
        "trainer.epochs=2",
        pretrain="configs/mkt_cj_pretrain.yaml",
        finetune="configs/mkt_cj_finetune.yaml",
        run_dir="/runs/mkt",
        j="2x2",
        image="registry.example/torchrec-xd-train:1",
        mounts=["type=volume", "src=storage", "dst=/runs"],
        env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        max_retries=2,
    )


@pytest.fixture
def api(tmp_path, monkeypatch):
    with kubernetes_api() as api:
        api.write_access(tmp_path / "kubeconfig")
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        yield api


@pytest.mark.filterwarnings(r"ignore:\sRole mkt configured with restarts")
def test_kubernetes_gets_a_job_of_volcano_whose_pods_it_knows(mkt, api):
    with get_runner() as runner:
        handle = runner.run(mkt, "kubernetes", cfg={"queue": "training", "namespace": "ads"})
        name = handle.rpartition(":")[2]
        job = api.job("ads", name)
        assert runner.status(handle).state == AppState.UNKNOWN  # Volcano has not seen it yet
        states = {"Completed": AppState.SUCCEEDED, "Failed": AppState.FAILED, "Running": AppState.RUNNING}
        for phase, state in states.items():
            job["status"] = {"state": {"phase": phase}}
            assert runner.status(handle).state == state
        assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
        assert (job["spec"]["queue"], job["spec"]["maxRetry"], len(job["spec"]["tasks"])) == ("training", 2, 2)
        for task in job["spec"]["tasks"]:
            template = {"metadata": {"name": task["name"]}, **task["template"]}
            for version in VERSIONS:
                pod = {"apiVersion": "v1", "kind": "Pod", **template}
                kubernetes_validate.validate(pod, version, strict=True)
            [container] = template["spec"]["containers"]
            assert container["command"][0] == "bash"
            assert container["image"] == "registry.example/torchrec-xd-train:1"
            assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in container["env"]
            [claim] = [v for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v]
            assert claim["persistentVolumeClaim"]["claimName"] == "storage"
        runner.cancel(handle)
        with pytest.raises(KeyError):
            api.job("ads", name)
    assert {token for _, token in api.seen} == {"Bearer a-token"}
    assert {method for method, _ in api.seen} == {"POST", "GET", "DELETE"}


@pytest.fixture
def batch(monkeypatch):
    """A client of AWS Batch with a queue `training`; jobs succeed, and nothing is run."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    settings = json.dumps({"batch": {"use_docker": False}}).encode()
    request = urllib.request.Request(f"http://{host}:{port}/moto-api/config", data=settings, method="POST")
    urllib.request.urlopen(request).close()
    iam, ec2, batch = (boto3.client(name) for name in ("iam", "ec2", "batch"))
    role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    profile = iam.create_instance_profile(InstanceProfileName="batch")["InstanceProfile"]["Arn"]
    network = ec2.create_vpc(CidrBlock="10.0.0.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=network, CidrBlock="10.0.0.0/25")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(Description="x", GroupName="batch", VpcId=network)["GroupId"]
    machines = {"type": "EC2", "minvCpus": 0, "maxvCpus": 8, "desiredvCpus": 0, "instanceTypes": ["m5.large"]}
    machines |= {"subnets": [subnet], "securityGroupIds": [group], "instanceRole": profile}
    made = batch.create_compute_environment(
        computeEnvironmentName="machines", type="MANAGED", state="ENABLED", computeResources=machines, serviceRole=role
    )
    order = [{"order": 1, "computeEnvironment": made["computeEnvironmentArn"]}]
    batch.create_job_queue(jobQueueName="training", state="ENABLED", priority=1, computeEnvironmentOrder=order)
    yield batch
    server.stop()


@pytest.mark.filterwarnings("ignore:Cannot determine resource instance type")
def test_aws_batch_registers_and_submits_a_multi_node_job(mkt, batch):
    with get_runner() as runner:
        handle = runner.run(mkt, "aws_batch", cfg={"queue": "training", "user": "someone"})
        status = runner.wait(handle, wait_interval=0.2)
        described = runner.describe(handle)
    assert status.state == AppState.SUCCEEDED
    name = handle.rpartition(":")[2]
    [definition] = batch.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    assert (definition["type"], definition["retryStrategy"]["attempts"]) == ("multinode", 2)
    [role] = described.roles
    assert (role.image, role.num_replicas) == ("registry.example/torchrec-xd-train:1", 2)
    assert role.env["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert role.entrypoint == "bash"  # Batch gives the command to the image's entry point, so the image has none
    assert role.args[1].startswith("exec python -m torchrec_xd.launch.stages ")
    [job] = batch.list_jobs(jobQueue="training", jobStatus="SUCCEEDED")["jobSummaryList"]
    assert job["jobName"] == name
