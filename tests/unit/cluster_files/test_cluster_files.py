"""The files in cluster/ are checked offline: Ray's own schema, and the fields that the KubeRay API requires."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[3] / "cluster"
RAY_UP = sorted(CLUSTER.glob("ray-up-*.yaml"))
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def test_all_files_are_covered() -> None:
    assert [path.name for path in RAY_UP] == ["ray-up-aws.yaml", "ray-up-local.yaml"]
    assert [path.name for path in KUBERAY] == ["mlflow.yaml", "raycluster.yaml", "rayjob-tune-bev.yaml"]


# ------------------------------------------------------------------------------------------------ ray up


def validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_up_files_follow_rays_schema(path: Path) -> None:
    validate(documents(path)[0])


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_the_schema_check_finds_a_typing_error(path: Path) -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        validate({**documents(path)[0], "idle_timeout_minute": 10})


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_up_clusters_are_closed(path: Path) -> None:
    config = documents(path)[0]
    text = path.read_text()
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in text
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        environment = " ".join(config[commands]) + " ".join(config.get("docker", {}).get("run_options", []))
        assert "RAY_AUTH_MODE=token" in environment
        assert "SENSORLAB_OUTPUT_ROOT=" in environment
        assert "MLFLOW_TRACKING_URI=http" in environment
    assert "RAY_AUTH_TOKEN=" not in text  # the token itself is in no file


def test_the_head_on_aws_runs_no_work() -> None:
    config = documents(CLUSTER / "ray-up-aws.yaml")[0]
    assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0
    assert any(option.startswith("--shm-size") for option in config["docker"]["run_options"])


# ------------------------------------------------------------------------------------------------ Kubernetes

API_VERSIONS = {
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "PersistentVolumeClaim": "v1",
    "Service": "v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}

# Fields of the ray.io/v1 API that the manifests may use: a name outside of these is a typing error. The API server
# would drop it without a word.
RAY_CLUSTER_FIELDS = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
    *("gcsFaultToleranceOptions", "suspend", "headServiceAnnotations"),
}
HEAD_FIELDS = {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
WORKER_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template"),
    *("numOfHosts", "scaleStrategy", "suspend"),
}
RAY_JOB_FIELDS = {
    *("entrypoint", "runtimeEnvYAML", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "rayClusterSpec"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "deletionStrategy", "clusterSelector", "jobId"),
    *("submitterPodTemplate", "submitterConfig", "suspend", "metadata", "entrypointNumCpus", "entrypointNumGpus"),
}
POD_FIELDS = {
    *("containers", "volumes", "securityContext", "automountServiceAccountToken", "serviceAccountName"),
    *("nodeSelector", "tolerations", "affinity", "initContainers", "terminationGracePeriodSeconds"),
}
CONTAINER_FIELDS = {
    *("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports", "resources", "volumeMounts"),
    *("securityContext", "readinessProbe", "livenessProbe", "lifecycle"),
}


def only(found: dict[str, Any], allowed: set[str], where: str) -> None:
    assert set(found) <= allowed, f"{where}: unknown {sorted(set(found) - allowed)}"


def ray_clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in KUBERAY:
        for document in documents(path):
            if document["kind"] == "RayCluster":
                yield path.name, document["spec"]
            if document["kind"] == "RayJob":
                yield path.name, document["spec"]["rayClusterSpec"]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cluster in ray_clusters():
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            yield f"{name} {group.get('groupName', 'head')}", group["template"]["spec"]
    for document in documents(CLUSTER / "kuberay" / "mlflow.yaml"):
        if document["kind"] == "Deployment":
            yield "mlflow.yaml", document["spec"]["template"]["spec"]


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()  # type: ignore[union-attr]
    return float(number) / (1024 if unit == "Mi" else 1)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_manifests_name_their_api_and_themselves(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        assert document["apiVersion"] == API_VERSIONS[document["kind"]]
        assert set(document["metadata"]) & {"name", "generateName"}
        assert document["spec"]


def test_ray_clusters_have_what_the_operator_needs() -> None:
    found = dict(ray_clusters())
    assert set(found) == {"raycluster.yaml", "rayjob-tune-bev.yaml"}
    for name, cluster in found.items():
        only(cluster, RAY_CLUSTER_FIELDS, name)
        only(cluster["headGroupSpec"], HEAD_FIELDS, f"{name} head")
        assert cluster["authOptions"] == {"mode": "token"}
        assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52)  # the first with tokens
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["workerGroupSpecs"]
        for group in cluster["workerGroupSpecs"]:
            only(group, WORKER_FIELDS, f"{name} {group['groupName']}")
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            parameters = [*group["rayStartParams"].values(), *cluster["headGroupSpec"]["rayStartParams"].values()]
            assert all(isinstance(value, str) for value in parameters)  # the API refuses numbers here


def test_ray_job_runs_the_sweep_and_cleans_up() -> None:
    (job,) = documents(CLUSTER / "kuberay" / "rayjob-tune-bev.yaml")
    only(job["spec"], RAY_JOB_FIELDS, "rayjob-tune-bev.yaml")
    assert job["spec"]["submissionMode"] in {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["activeDeadlineSeconds"] > 0
    script = shlex.split(job["spec"]["entrypoint"])[1].removeprefix("/home/ray/sensorlab/")
    assert (CLUSTER.parent / script).is_file()


def test_pods_are_restricted_and_complete() -> None:
    found = list(pods())
    assert len(found) == 5
    for where, pod in found:
        only(pod, POD_FIELDS, where)
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            only(container, CONTAINER_FIELDS, where)
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["limits"]["memory"]


def test_ray_pods_have_shared_memory_and_the_platforms_environment() -> None:
    for where, pod in pods():
        if where == "mlflow.yaml":
            continue
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        shared = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shared["medium"] == "Memory", where
        assert gibibytes(shared["sizeLimit"]) >= 0.3 * gibibytes(container["resources"]["limits"]["memory"]), where
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        outputs = Path(environment["SENSORLAB_OUTPUT_ROOT"])
        assert any(outputs.is_relative_to(mount) for mount in mounts if mount != "/dev/shm")


def test_names_across_the_manifests_fit() -> None:
    by_kind: dict[str, dict[str, Any]] = {}
    for document in documents(CLUSTER / "kuberay" / "mlflow.yaml"):
        by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document["spec"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in pods()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == set(by_kind["PersistentVolumeClaim"])
    labels = by_kind["Deployment"]["mlflow"]["template"]["metadata"]["labels"]
    assert by_kind["Deployment"]["mlflow"]["selector"]["matchLabels"] == labels
    assert by_kind["Service"]["mlflow"]["selector"] == labels
    assert by_kind["NetworkPolicy"]["mlflow"]["podSelector"]["matchLabels"] == labels
    allowed = by_kind["NetworkPolicy"]["mlflow"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    for _, cluster in ray_clusters():
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            assert allowed.items() <= group["template"]["metadata"]["labels"].items()


# ------------------------------------------------------------------------------------------------ MLflow, image, README


def mlflow_commands() -> dict[str, list[str]]:
    """Arguments after ``mlflow server`` of every place that starts one."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(CLUSTER / "mlflow-server.service")
    unit = shlex.split(parser["Service"]["ExecStart"])
    (deployment,) = [d for d in documents(CLUSTER / "kuberay" / "mlflow.yaml") if d["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert unit[1] == container[1] == "server"
    return {"unit": unit[2:], "deployment": container[2:]}


@pytest.mark.parametrize("where", ["unit", "deployment"])
def test_mlflow_servers_take_their_options(where: str) -> None:
    from mlflow.cli import server

    arguments = mlflow_commands()[where]
    context = server.make_context("server", arguments, resilient_parsing=False)
    assert context.params["backend_store_uri"]
    assert context.params["artifacts_destination"]


def test_mlflow_servers_run_no_jobs_and_load_no_pickles() -> None:
    for path in (CLUSTER / "mlflow-server.service", CLUSTER / "kuberay" / "mlflow.yaml"):
        text = path.read_text()
        for switch in ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
            assert re.search(rf'{switch}(=|, value: ")false', text), (path.name, switch)
    assert "Environment=LISTEN_ADDRESS=127.0.0.1" in (CLUSTER / "mlflow-server.service").read_text()


def test_every_ray_version_is_the_tested_one() -> None:
    import ray

    found = {}
    for path in [*KUBERAY, *RAY_UP, CLUSTER / "Dockerfile", CLUSTER / "README.md"]:
        pattern = r'(?:rayproject/ray:|sensorlab(?:-app)?:|rayVersion: "|\bRay )(\d+\.\d+\.\d+)'
        for version in re.findall(pattern, path.read_text()):
            found.setdefault(version, path.name)
    assert set(found) == {ray.__version__}, found


def test_the_image_copies_files_that_exist() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.M) for word in line.split()[:-1]]
    assert len(sources) >= 6
    missing = [source for source in sources if not (CLUSTER.parent / source).exists()]
    assert missing == []


def test_the_readme_names_every_file_and_the_commands() -> None:
    text = (CLUSTER / "README.md").read_text()
    for path in CLUSTER.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert path.relative_to(CLUSTER).as_posix() in text, path.name
    for command in (
        "ray job submit --working-dir . -- python experiments/tune_bev.py",
        "ray get-auth-token --generate",
        "RAY_AUTH_MODE=token",
        "--dashboard-host 127.0.0.1",
        "SENSORLAB_OUTPUT_ROOT",
        "MLFLOW_TRACKING_URI",
        "SENSORLAB_GIT_REVISION",
    ):
        assert command in text, command
