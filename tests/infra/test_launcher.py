"""The cluster launcher's files, checked with Ray's own functions."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
CLOUDS = ("aws", "gcp")


@cache
def text(cloud):
    return (INFRA / cloud / "cluster.yaml").read_text()


def cluster(cloud):
    return yaml.safe_load(text(cloud))


def workers(cloud):
    config = cluster(cloud)
    return {
        name: kind
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    }


def head(cloud):
    config = cluster(cloud)
    return config["available_node_types"][config["head_node_type"]]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_file_passes_ray_s_own_schema(cloud):
    validate_config(prepare_config(cluster(cloud)))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_misspelt_key_fails_ray_s_schema(cloud):
    config = prepare_config(cluster(cloud))
    config["available_node_types"]["cpu"]["min_worker"] = 0
    with pytest.raises(Exception, match="min_worker"):
        validate_config(config)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_an_idle_cluster_is_a_head_that_runs_no_tasks(cloud):
    assert head(cloud)["resources"] == {"CPU": 0}
    assert head(cloud)["max_workers"] == 0
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers(cloud).values())
    assert 0 < cluster(cloud)["idle_timeout_minutes"] <= 15


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_training_uses_spot_machines(cloud):
    for name, kind in workers(cloud).items():
        spot = name.startswith("train")
        label = kind["labels"]["ray.io/market-type"]
        assert label == ("spot" if spot else "on-demand"), name
        assert bought_as_spot(cloud, kind["node_config"]) is spot, name
        on_gpu = kind["resources"].get("GPU", 0) > 0
        assert on_gpu == (name != "cpu") == ("ray.io/accelerator-type" in kind["labels"])
        if on_gpu:
            assert name.rpartition("-")[2].upper() == kind["labels"]["ray.io/accelerator-type"]
    assert {"train-h100", "train-a100", "cpu"} < set(workers(cloud))


def bought_as_spot(cloud, node):
    if cloud == "aws":
        return node.get("InstanceMarketOptions") == {"MarketType": "spot"}
    return node.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_node_has_the_token_and_asks_for_it(cloud):
    config = cluster(cloud)
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    (environment,) = config["initialization_commands"]
    assert "export RAY_AUTH_MODE=token" in environment
    for start in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert "RAY_AUTH_MODE" not in start


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_dashboard_and_the_job_api_listen_on_the_head_s_loopback_only(cloud):
    (start,) = (c for c in cluster(cloud)["head_start_ray_commands"] if "--head" in c)
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "0.0.0.0" not in text(cloud)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_artifacts_go_to_the_bucket_and_the_file_holds_no_secret(cloud):
    (environment,) = cluster(cloud)["initialization_commands"]
    scheme = {"aws": "s3", "gcp": "gs"}[cloud]
    assert f"export STILLROOM_ROOT={scheme}://YOUR_BUCKET/runs" in environment
    lower_text = text(cloud).lower()
    assert not any(
        word in lower_text for word in ("secret", "access_key", "password", "credentials")
    )


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_commands_of_every_list_are_valid_shell(cloud):
    config = cluster(cloud)
    for name in config:
        for command in config[name] if name.endswith("_commands") else ():
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_login_shell_on_a_node_has_the_environment(cloud, tmp_path):
    (command,) = cluster(cloud)["initialization_commands"]
    (tmp_path / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):  # Ray runs it again when a node is updated
        subprocess.run(["bash", "-c", command], env=env, check=True)
    assert (tmp_path / ".bashrc").read_text().count("stillroom/environment") == 1
    output = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; echo $RAY_AUTH_MODE $STILLROOM_ROOT $PYTHONPATH; echo $PATH"],
        env=env, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    mode, root, path = output[0].split()
    assert (mode, path) == ("token", f"{tmp_path}/stillroom/platform")
    assert root.endswith("://YOUR_BUCKET/runs")
    assert output[1].startswith(f"{tmp_path}/venv/bin:")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_nodes_set_the_same_serve_variables_as_the_image(cloud):
    def serve_settings(text):
        return set(re.findall(r"RAY_SERVE_\w+=[^\s']+", text))

    dockerfile = (INFRA / "docker" / "Dockerfile").read_text()
    assert serve_settings(text(cloud)) == serve_settings(dockerfile) != set()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_files_that_are_copied_to_the_nodes_exist(cloud):
    mounts = cluster(cloud)["file_mounts"]
    local = [path for path in mounts.values() if not path.startswith("~")]
    assert {path for path in local if (ROOT / path).exists()} == set(local)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_node_is_set_up_by_the_scripts_of_the_launcher(cloud):
    setup = cluster(cloud)["setup_commands"]
    folder = "~/stillroom/launcher"
    assert setup[1:] == [f"sh {folder}/install.sh", f"sh {folder}/scratch.sh"]
    assert cluster(cloud)["file_mounts"][f"/home/ubuntu{folder[1:]}"] == "infra/launcher"
