"""The manifest for Kubernetes: fields of KubeRay's types, and a command and paths that hold together."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from selftrain.cli.runs import app

MANIFEST = Path(__file__).parents[3] / "docs" / "kuberay.yaml"

# what ray.io/v1 has of these kinds (ray-operator/apis/ray/v1 of KubeRay), as far as a run may want it;
# "!": needed
POD = {"metadata": dict, "spec": {
    "containers!": [{
        "name!": str, "image!": str, "resources": {"requests": dict, "limits": dict}, "env": list,
        "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
    }],
    "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}}],
}}  # fmt: skip
RAY_JOB = {
    "apiVersion!": str, "kind!": str, "metadata!": {"name!": str, "namespace": str},
    "spec!": {
        "entrypoint!": str, "submissionMode": str, "backoffLimit": int, "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int, "activeDeadlineSeconds": int, "runtimeEnvYAML": str,
        "rayClusterSpec!": {
            "rayVersion": str, "enableInTreeAutoscaling": bool,
            "headGroupSpec!": {"rayStartParams!": dict, "template!": POD, "serviceType": str},
            "workerGroupSpecs": [{
                "groupName!": str, "replicas": int, "minReplicas!": int, "maxReplicas!": int,
                "numOfHosts": int, "rayStartParams!": dict, "template!": POD,
            }],
        },
    },
}  # fmt: skip


def faults(value, shape, place=""):
    """Where a value is not of a shape."""
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{place}: {value!r}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{place}: {value!r}"]
        return [one for n, item in enumerate(value) for one in faults(item, shape[0], f"{place}[{n}]")]
    if not isinstance(value, dict):
        return [f"{place}: {value!r}"]
    known = {name.rstrip("!"): inner for name, inner in shape.items()}
    found = [f"{place}.{name} is unknown" for name in value if name not in known]
    found += [
        f"{place}.{name[:-1]} is missing" for name in shape if name[-1] == "!" and name[:-1] not in value
    ]
    return found + [
        one for name, item in value.items() if name in known
        for one in faults(item, known[name], f"{place}.{name}")
    ]  # fmt: skip


@pytest.fixture
def job():
    return yaml.safe_load(MANIFEST.read_text())


def test_its_fields_are_those_of_a_ray_job(job):
    assert faults(job, RAY_JOB) == []
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode")
    for change in (
        {"backoffLimit": "3"},
        {"entryPoint": "x"},
        {"rayClusterSpec": {"workerGroupSpecs": [{}]}},
    ):
        assert faults(job | {"spec": job["spec"] | change}, RAY_JOB)


def test_its_command_is_one_and_finds_its_paths_in_every_pod(job):
    program, command, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("selftrain", "run")
    told = get_command(app).commands["run"].make_context("run", words).params
    assert told["ray"] == "auto"
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert len({one["image"] for pod in pods for one in pod["containers"]}) == 1
    for pod in pods:
        claims = {one["name"]: one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"]}
        (container,) = pod["containers"]
        mounted = {one["mountPath"]: claims[one["name"]] for one in container["volumeMounts"]}
        for path in (told["recipe"], told["out"]):
            assert mounted[f"/{path.parts[1]}"] == "selftrain-data"
        assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in groups:  # `ray start` takes texts
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_its_ray_is_the_one_that_is_tested(job):
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
