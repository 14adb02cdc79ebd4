"""Ray's launcher accepts cluster/aws.yaml, and the file does what its comments promise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import CHECKOUT

SCHEMA = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())


@pytest.fixture
def config() -> Any:
    return yaml.safe_load((CHECKOUT / "cluster" / "aws.yaml").read_text())


def test_it_is_of_rays_schema(config: Any) -> None:
    jsonschema.validate(config, SCHEMA)


def test_a_misspelt_field_is_not(config: Any) -> None:
    config["idle_timeout_minuts"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        jsonschema.validate(config, SCHEMA)


def test_the_launcher_itself_accepts_it(config: Any) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    install = config["setup_commands"][0]
    assert install in prepared["head_setup_commands"]
    assert install in prepared["worker_setup_commands"]


def test_workers_are_spot_and_start_from_zero(config: Any) -> None:
    types = config["available_node_types"]
    workers = [types[name] for name in types if name != config["head_node_type"]]
    assert workers
    for worker in workers:
        assert worker["min_workers"] == 0
        assert worker["max_workers"] == config["max_workers"]
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_no_shard_lands_on_the_head_which_is_no_spot_instance(config: Any) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_rights_come_from_instance_profiles_and_no_secret_is_in_the_file(config: Any) -> None:
    for node in config["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Name"]
    assert "AWS_" not in (CHECKOUT / "cluster" / "aws.yaml").read_text()


def test_the_checkout_is_installed_on_each_node_from_where_it_is_mounted(config: Any) -> None:
    ((mounted, source),) = config["file_mounts"].items()
    assert source == "."
    assert mounted in config["setup_commands"][0]


def test_the_job_server_is_not_open_to_the_network(config: Any) -> None:
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_the_image_has_the_ray_that_is_tested_here(config: Any) -> None:
    assert config["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-cpu"
