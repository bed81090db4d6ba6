"""The manifests of launch/kubernetes: by Kubernetes' own schemas, and against what the server has."""

from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml

from torchrec_xd.cli.app import app
from torchrec_xd.serving.app import create_app
from torchrec_xd.serving.server import DRAIN_SECONDS
from torchrec_xd.serving.server_settings import ServerSettings

FOLDER = Path(__file__).parents[2] / "launch" / "kubernetes"
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def pod(name):
    """The specification of the pod that serves."""
    first = documents(name)[0]
    if first["kind"] == "Deployment":
        return first["spec"]["template"]["spec"]
    predictor = dict(first["spec"]["predictor"])
    assert 1 <= predictor.pop("minReplicas") <= predictor.pop("maxReplicas")  # KServe's own, not a pod's
    return predictor


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_what_kubernetes_reads(version):
    kinds = []
    for document in documents("serve.yaml"):
        kubernetes_validate.validate(document, version, strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Deployment", "Service", "PodDisruptionBudget"]
    content = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod("kserve.yaml")}
    kubernetes_validate.validate(content, version, strict=True)
    content["spec"]["containers"][0]["port"] = 8080  # no key of a container: the check checks
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        kubernetes_validate.validate(content, version, strict=True)


def test_the_service_finds_the_pods():
    deployment, service, budget = documents("serve.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    assert notes["prometheus.io/path"] in {route.path for route in create_app(ServerSettings(out="x")).routes}


@pytest.mark.parametrize("name", ["serve.yaml", "kserve.yaml"])
def test_the_container_is_started_probed_and_stopped_as_the_server_is(name):
    spec = pod(name)
    [container] = spec["containers"]
    command, out, *options = container["args"]
    known = {name for each in typer.main.get_command(app).commands[command].params for name in each.opts}
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert set(given) <= known
    assert all(isinstance(value, str) for value in container["args"])
    settings = ServerSettings(out=out, **{name[2:].replace("-", "_"): value for name, value in given.items()})
    assert settings.host == "0.0.0.0"
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    routes = {route.path for route in create_app(settings).routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        http = container[probe]["httpGet"]
        assert http["path"] in routes
        assert http["port"] in (port["name"], port["containerPort"])
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= waits + DRAIN_SECONDS + 5
    [mount] = [mount for mount in container["volumeMounts"] if out.startswith(f"{mount['mountPath']}/")]
    assert mount["readOnly"]


@pytest.mark.parametrize("name", ["serve.yaml", "kserve.yaml"])
def test_the_container_may_do_no_more_than_it_has_to(name):
    spec = pod(name)
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp"}  # where the metrics of several workers are
    user = str(spec["securityContext"]["runAsUser"])
    image = (FOLDER.parent / "containers" / "serve.Containerfile").read_text(encoding="utf-8").splitlines()
    assert f"USER {user}" in image
