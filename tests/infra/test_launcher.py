"""The cluster launcher's files: against Ray's schema, and against a cloud that Ray really calls."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
CLOUDS = ("aws", "gcp")
SSH_FROM = "203.0.113.7/32"


@cache
def text(cloud):
    return (INFRA / cloud / "cluster.yaml").read_text()


def cluster(cloud):
    return yaml.safe_load(text(cloud))


def workers(cloud):
    found = cluster(cloud)
    return {
        name: kind
        for name, kind in found["available_node_types"].items()
        if name != found["head_node_type"]
    }


def head(cloud):
    found = cluster(cloud)
    return found["available_node_types"][found["head_node_type"]]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_s_own_schema_takes_the_file(cloud):
    validate_config(prepare_config(cluster(cloud)))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_misspelt_key_would_not_have_been_taken(cloud):
    found = prepare_config(cluster(cloud))
    found["available_node_types"]["cpu"]["min_worker"] = 0
    with pytest.raises(Exception, match="min_worker"):
        validate_config(found)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_an_idle_cluster_is_a_head_that_runs_no_tasks(cloud):
    assert head(cloud)["resources"] == {"CPU": 0}
    assert head(cloud)["max_workers"] == 0
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers(cloud).values())
    assert 0 < cluster(cloud)["idle_timeout_minutes"] <= 15


@pytest.mark.parametrize("cloud", CLOUDS)
def test_training_is_on_spot_machines_and_what_somebody_waits_for_is_not(cloud):
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
    found = cluster(cloud)
    assert found["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in found["setup_commands"]
    (environment,) = found["initialization_commands"]
    assert "export RAY_AUTH_MODE=token" in environment
    for start in found["head_start_ray_commands"] + found["worker_start_ray_commands"]:
        assert "RAY_AUTH_MODE" not in start


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_dashboard_and_the_job_api_listen_on_the_head_alone(cloud):
    (start,) = (c for c in cluster(cloud)["head_start_ray_commands"] if "--head" in c)
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "0.0.0.0" not in text(cloud)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_artifacts_lie_in_the_bucket_and_no_key_lies_in_the_file(cloud):
    (environment,) = cluster(cloud)["initialization_commands"]
    scheme = {"aws": "s3", "gcp": "gs"}[cloud]
    assert f"export STILLROOM_ROOT={scheme}://YOUR_BUCKET/runs" in environment
    said = text(cloud).lower()
    assert not any(word in said for word in ("secret", "access_key", "password", "credentials"))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_commands_of_every_list_are_valid_shell(cloud):
    found = cluster(cloud)
    for name in found:
        for command in found[name] if name.endswith("_commands") else ():
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_a_login_shell_on_a_node_finds(cloud, tmp_path):
    (command,) = cluster(cloud)["initialization_commands"]
    (tmp_path / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):  # Ray runs it again when a node is updated
        subprocess.run(["bash", "-c", command], env=env, check=True)
    assert (tmp_path / ".bashrc").read_text().count("stillroom/environment") == 1
    shown = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; echo $RAY_AUTH_MODE $STILLROOM_ROOT $PYTHONPATH; echo $PATH"],
        env=env, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    mode, root, path = shown[0].split()
    assert (mode, path) == ("token", f"{tmp_path}/stillroom/platform")
    assert root.endswith("://YOUR_BUCKET/runs")
    assert shown[1].startswith(f"{tmp_path}/venv/bin:")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_serve_has_the_means_that_the_image_gives_it(cloud):
    def means(text):
        return set(re.findall(r"RAY_SERVE_\w+=[^\s']+", text))

    assert means(text(cloud)) == means((INFRA / "docker" / "Dockerfile").read_text()) != set()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_files_that_go_to_the_nodes_are_there(cloud):
    mounts = cluster(cloud)["file_mounts"]
    local = [place for place in mounts.values() if not place.startswith("~")]
    assert {place for place in local if (ROOT / place).exists()} == set(local)


# --- AWS, as Ray calls it -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws():
    """An AWS with the stack that infra/aws/access.yaml makes; yields its file, filled in."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_DEFAULT_REGION", "us-west-2")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        ec2 = boto3.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(
            VpcId=vpc, CidrBlock="10.0.0.0/20", AvailabilityZone="us-west-2a"
        )["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        stack(vpc, SSH_FROM)
        outputs = boto3.client("cloudformation").describe_stacks(StackName="stillroom")
        (group,) = (o["OutputValue"] for o in outputs["Stacks"][0]["Outputs"])
        filled = text("aws")
        for name, value in {
            "YOUR_SECURITY_GROUP": group,
            "YOUR_SUBNETS": subnet,
            "YOUR_IMAGE": ec2.describe_images(MaxResults=5)["Images"][0]["ImageId"],
        }.items():
            filled = filled.replace(name, value)
        yield yaml.safe_load(filled)
    server.stop()


def stack(vpc, ssh_from):
    given = {"Vpc": vpc, "SshFrom": ssh_from, "Bucket": "stillroom"}
    boto3.client("cloudformation").create_stack(
        StackName="stillroom",
        TemplateBody=(INFRA / "aws" / "access.yaml").read_text(),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def ingress():
    """(protocol, from port, ranges, groups) of every rule of the stack's group."""
    (group,) = boto3.client("ec2").describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["stillroom"]}]
    )["SecurityGroups"]
    rules = [
        (
            rule["IpProtocol"],
            rule.get("FromPort"),
            [found["CidrIp"] for found in rule["IpRanges"]],
            [pair["GroupId"] == group["GroupId"] for pair in rule["UserIdGroupPairs"]],
        )
        for rule in group["IpPermissions"]
    ]
    return sorted(rules, key=str)


OPEN = [("-1", None, [], [True]), ("tcp", 22, [SSH_FROM], [])]


def test_only_ssh_comes_in_and_only_from_where_its_owner_said(aws):
    found = ingress()
    assert [(p, None if port == -1 else port, r, g) for p, port, r, g in found] == OPEN


def test_everybody_is_no_range_that_ssh_may_come_from():
    template = yaml.load((INFRA / "aws" / "access.yaml").read_text(), Loader=Tags)
    allowed = re.compile(template["Parameters"]["SshFrom"]["AllowedPattern"])
    assert allowed.fullmatch(SSH_FROM)
    assert not any(allowed.fullmatch(r) for r in ("0.0.0.0/0", "0.0.0.0", "10.0.0.0/8", "::/0"))


class Tags(yaml.SafeLoader):
    """CloudFormation's tags as plain values."""


Tags.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")


def test_a_worker_may_use_the_bucket_and_nothing_else_and_the_head_only_starts_workers(aws):
    iam = boto3.client("iam")
    attached = {
        role: iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        for role in ("stillroom-head", "stillroom-worker")
    }
    assert [p["PolicyName"] for p in attached["stillroom-worker"]] == ["stillroom-artifacts"]
    assert iam.list_role_policies(RoleName="stillroom-worker")["PolicyNames"] == []
    arn = attached["stillroom-worker"][0]["PolicyArn"]
    document = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
    assert {statement["Resource"] for statement in document["Statement"]} == {
        "arn:aws:s3:::stillroom",
        "arn:aws:s3:::stillroom/*",
    }
    own = iam.get_role_policy(RoleName="stillroom-head", PolicyName="autoscaler")["PolicyDocument"]
    own = yaml.safe_load(own) if isinstance(own, str) else own  # moto gives it as it is written
    passes = [s for s in own["Statement"] if s["Action"] == "iam:PassRole"]
    worker = iam.get_role(RoleName="stillroom-worker")["Role"]["Arn"]
    assert [s["Resource"] for s in passes] == [worker]


def test_ray_starts_the_machines_as_the_file_has_them_and_opens_no_group_of_its_own(aws):
    ec2 = boto3.client("ec2")
    groups = {group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    config = bootstrap_aws(prepare_config(aws))
    found = ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupId"] for group in found} == groups
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
    machines = [
        machine
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    ]
    named = {tag["Value"]: m for m in machines for tag in m["Tags"] if "node-type" in tag["Key"]}
    assert named.keys() == config["available_node_types"].keys()
    for name, machine in named.items():
        assert (
            machine["InstanceType"]
            == config["available_node_types"][name]["node_config"]["InstanceType"]
        )
        assert (machine.get("InstanceLifecycle") == "spot") == name.startswith("train")
        role = "stillroom-head" if name == "head" else "stillroom-worker"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["stillroom"]


# --- Google Cloud, as the script calls it -------------------------------------------------------


def gcp_calls(tmp_path, **given):
    """The finished script, and each call of gcloud that it made."""
    log = tmp_path / "calls"
    (tmp_path / "gcloud").write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    (tmp_path / "gcloud").chmod(0o755)
    done = subprocess.run(
        ["sh", str(INFRA / "gcp" / "access.sh")], capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **given},
    )  # fmt: skip
    return done, log.read_text().splitlines() if log.exists() else []


NAMED = {"PROJECT": "my-project", "BUCKET": "my-bucket", "SSH_FROM": SSH_FROM}


def test_on_google_cloud_too_only_ssh_comes_in_from_where_its_owner_said(tmp_path):
    done, calls = gcp_calls(tmp_path, **NAMED)
    assert done.returncode == 0, done.stderr
    ssh, nodes = (call for call in calls if "firewall-rules create" in call)
    assert f"--allow tcp:22 --source-ranges {SSH_FROM}" in ssh
    assert "--source-ranges" not in nodes and "--source-service-accounts stillroom-head@" in nodes
    assert not any("0.0.0.0/0" in call for call in calls)


def test_on_google_cloud_too_a_worker_may_use_the_bucket_and_nothing_else(tmp_path):
    _, calls = gcp_calls(tmp_path, **NAMED)
    granted = [call for call in calls if "add-iam-policy-binding" in call]
    worker = "serviceAccount:stillroom-worker@"
    assert {call.split()[1] for call in granted if worker in call} == {"buckets"}
    assert sum("projects add-iam-policy-binding" in call for call in granted) == 1


@pytest.mark.parametrize("left_out", [*NAMED])
def test_without_a_name_or_range_nothing_is_made_on_google_cloud(tmp_path, left_out):
    done, calls = gcp_calls(tmp_path, **{k: v for k, v in NAMED.items() if k != left_out})
    assert done.returncode != 0 and left_out in done.stderr
    assert calls == []


def test_google_cloud_refuses_ssh_from_all_addresses_too(tmp_path):
    done, calls = gcp_calls(tmp_path, **{**NAMED, "SSH_FROM": "0.0.0.0/0"})
    assert done.returncode == 2 and "allows all addresses" in done.stderr
    assert calls == []


def test_google_s_machines_have_the_network_and_the_accounts_that_the_script_makes(tmp_path):
    _, calls = gcp_calls(tmp_path, **NAMED)
    for name, kind in cluster("gcp")["available_node_types"].items():
        node = kind["node_config"]
        (interface,) = node["networkInterfaces"]
        assert interface["subnetwork"].endswith("regions/us-central1/subnetworks/stillroom")
        (account,) = node["serviceAccounts"]
        role = "stillroom-head" if name == "head" else "stillroom-worker"
        assert account["email"].startswith(f"{role}@")
        assert any(f"service-accounts create {role} " in call for call in calls)
