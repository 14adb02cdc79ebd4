"""cluster/kuberay.yaml is a RayJob whose fields are those of KubeRay, and whose command and config are ours."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import ray
import submit
import yaml

from arrowquant_dist.config import QuantizationConfig
from tests.cluster.rayjob_schema import RAY_JOB
from tests.conftest import CHECKOUT

CONFIG_MAP, JOB = yaml.safe_load_all((CHECKOUT / "cluster" / "kuberay.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, (WORKERS,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]


def container(group: Any) -> Any:
    (only,) = group["template"]["spec"]["containers"]
    return only


def test_every_field_is_one_of_kuberays() -> None:
    jsonschema.validate(JOB, RAY_JOB)


def _rename(place: Callable[[Any], Any], name: str, wrong: str) -> Any:
    job = copy.deepcopy(JOB)
    fields = place(job["spec"])
    fields[wrong] = fields.pop(name)
    return job


@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (lambda spec: spec, "shutdownAfterJobFinishes", "shutdownAfterJobFinish"),
        (lambda spec: spec, "entrypoint", "entryPoint"),
        (lambda spec: spec["rayClusterSpec"], "enableInTreeAutoscaling", "enableIntreeAutoscaling"),
        (lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0], "minReplicas", "minReplica"),
        (
            lambda spec: container(spec["rayClusterSpec"]["workerGroupSpecs"][0])["resources"],
            "limits",
            "limit",
        ),
    ],
)
def test_a_misspelt_field_is_noticed(place: Callable[[Any], Any], name: str, wrong: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        jsonschema.validate(_rename(place, name, wrong), RAY_JOB)


def test_the_command_is_one_that_the_program_takes() -> None:
    program = shlex.split(JOB["spec"]["entrypoint"])
    assert program[:3] == ["python", "-m", "arrowquant_dist"]
    parameters = submit.parsed(program[3:])
    assert parameters["engine"] == "ray"
    assert parameters["workers"] <= WORKERS["maxReplicas"] * int(
        container(WORKERS)["resources"]["limits"]["cpu"]
    )


def test_the_config_is_mounted_where_the_command_looks_and_is_valid() -> None:
    (volume,) = HEAD["template"]["spec"]["volumes"]
    (mount,) = container(HEAD)["volumeMounts"]
    assert volume["configMap"]["name"] == CONFIG_MAP["metadata"]["name"]
    assert mount["name"] == volume["name"]
    (name,) = CONFIG_MAP["data"]
    assert f"--config {mount['mountPath']}/{name}" in JOB["spec"]["entrypoint"]
    QuantizationConfig.from_dict(yaml.safe_load(CONFIG_MAP["data"][name]))


def test_workers_start_from_zero_and_the_head_takes_no_shards() -> None:
    assert CLUSTER["enableInTreeAutoscaling"]
    assert WORKERS["replicas"] == WORKERS["minReplicas"] == 0
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])
def test_what_is_requested_is_the_limit(group: Any) -> None:
    resources = container(group)["resources"]
    assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])
def test_credentials_come_from_the_secret(group: Any) -> None:
    assert container(group)["envFrom"] == [{"secretRef": {"name": "arrowquant-s3", "optional": True}}]
    assert "env" not in container(group)


def test_a_failed_run_is_tried_again_and_the_cluster_goes_with_the_run() -> None:
    spec = JOB["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]


def test_one_ray_everywhere() -> None:
    dockerfile = (CHECKOUT / "cluster" / "Dockerfile").read_text()
    assert CLUSTER["rayVersion"] == ray.__version__
    assert f"FROM rayproject/ray:{ray.__version__}-py311-cpu\n" in dockerfile
    assert container(HEAD)["image"] == container(WORKERS)["image"]
    assert f"-t {container(HEAD)['image']} " in dockerfile
