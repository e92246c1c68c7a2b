"""The cluster launcher's files, checked with Ray's schema and with a simulated cloud."""

import os
import re
import subprocess
import sys
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
BUCKET = "the-stack-s-bucket"  # moto's accounts are shared with other tests of the process
SSH_FROM = "203.0.113.7/32"


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
def test_a_new_machine_s_locks_are_waited_for(cloud):
    """Updates that a machine installs when it starts hold apt's locks."""
    (install,) = (c for c in cluster(cloud)["setup_commands"] if "apt-get" in c)
    assert "for attempt in $(seq 60); do sudo apt-get update -qq && break; sleep 5; done" in install
    assert re.search(r"apt-get -o DPkg::Lock::Timeout=\d{3} install", install)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_python_of_nodes_is_the_image_s(cloud):
    dockerfile = (INFRA / "docker" / "Dockerfile").read_text()
    (python,) = set(re.findall(r"FROM python:([\d.]+)-slim", dockerfile))
    assert re.findall(r"uv venv --quiet --python (\S+)", text(cloud)) == [python]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("has_gpu", "torch"), [(True, "torch.txt"), (False, "torch-cpu.txt")])
def test_a_node_without_a_gpu_gets_the_cpu_build_of_torch(cloud, tmp_path, has_gpu, torch):
    *_, command = cluster(cloud)["setup_commands"]
    log = tmp_path / "calls"
    scripts = {
        "uv/bin/uv": f'echo "$@" >> {log}',
        "bin/nvidia-smi": "exit 0" if has_gpu else "exit 9",  # 9: no device
    }
    for name, script in scripts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (tmp_path / "stillroom" / "requirements").mkdir(parents=True)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], env=env, check=True)
    first, second = log.read_text().splitlines()
    assert first.endswith(f"-r {torch}") and second.endswith("-r requirements.txt")
    assert ("download.pytorch.org/whl/cpu" in first) != has_gpu
    assert all("--require-hashes --no-deps" in call for call in (first, second))


# --- AWS, called by Ray -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws():
    """A simulated AWS with the stack of access.yaml; yields the completed cluster file."""
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
        create_stack(vpc, SSH_FROM)
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


def create_stack(vpc, ssh_from):
    parameters = {"Vpc": vpc, "SshFrom": ssh_from, "Bucket": BUCKET}
    boto3.client("cloudformation").create_stack(
        StackName="stillroom",
        TemplateBody=(INFRA / "aws" / "access.yaml").read_text(),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def ingress_rules():
    """(protocol, from port, ranges, is its own group) of every rule of the stack's group."""
    (group,) = boto3.client("ec2").describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["stillroom"]}]
    )["SecurityGroups"]
    rules = [
        (
            rule["IpProtocol"],
            rule.get("FromPort"),
            [ip_range["CidrIp"] for ip_range in rule["IpRanges"]],
            [pair["GroupId"] == group["GroupId"] for pair in rule["UserIdGroupPairs"]],
        )
        for rule in group["IpPermissions"]
    ]
    return sorted(rules, key=str)


OPEN = [("-1", None, [], [True]), ("tcp", 22, [SSH_FROM], [])]


def test_only_ssh_is_open_and_only_to_the_configured_range(aws):
    rules = ingress_rules()
    assert [(p, None if port == -1 else port, r, g) for p, port, r, g in rules] == OPEN


def test_cloudformation_s_own_linter_finds_nothing():
    """Moto accepts what CloudFormation refuses, such as YAML's aliases."""
    linter = Path(sys.executable).parent / "cfn-lint"
    templates = [
        path for path in INFRA.rglob("*.yaml") if "AWSTemplateFormatVersion" in path.read_text()
    ]
    assert templates == [INFRA / "aws" / "access.yaml"]
    done = subprocess.run(
        [linter, "--include-checks", "I", "--", *templates], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_stack_makes_a_private_bucket_that_outlasts_it(aws):
    s3 = boto3.client("s3")
    assert BUCKET in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    template = read_template()["Resources"]["ArtifactBucket"]
    blocked = template["Properties"]["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4 and all(blocked.values())
    assert template["DeletionPolicy"] == template["UpdateReplacePolicy"] == "Retain"


def test_efa_may_leave_to_the_nodes_of_the_group():
    """EFA's traffic needs a rule that names the group, in both directions."""
    resources = read_template()["Resources"].values()
    rules = {
        resource["Type"]: resource["Properties"]
        for resource in resources
        if resource["Type"].startswith("AWS::EC2::SecurityGroup")
    }
    group = rules["AWS::EC2::SecurityGroupIngress"]["GroupId"]
    assert rules["AWS::EC2::SecurityGroupIngress"]["SourceSecurityGroupId"] == group
    assert rules["AWS::EC2::SecurityGroupEgress"]["DestinationSecurityGroupId"] == group


def read_template():
    return yaml.load((INFRA / "aws" / "access.yaml").read_text(), Loader=Tags)


def test_ssh_cannot_be_opened_to_all_addresses():
    allowed = re.compile(read_template()["Parameters"]["SshFrom"]["AllowedPattern"])
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
        f"arn:aws:s3:::{BUCKET}",
        f"arn:aws:s3:::{BUCKET}/*",
    }
    inline = iam.get_role_policy(RoleName="stillroom-head", PolicyName="autoscaler")
    head_policy = inline["PolicyDocument"]
    if isinstance(head_policy, str):  # moto returns the YAML
        head_policy = yaml.safe_load(head_policy)
    pass_role = [s for s in head_policy["Statement"] if s["Action"] == "iam:PassRole"]
    worker = iam.get_role(RoleName="stillroom-worker")["Role"]["Arn"]
    assert [s["Resource"] for s in pass_role] == [worker]


def test_ray_starts_the_configured_machines_and_creates_no_security_group(aws):
    ec2 = boto3.client("ec2")
    groups = {group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    config = bootstrap_aws(prepare_config(aws))
    groups_after = ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupId"] for group in groups_after} == groups
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
    machines = [
        machine
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    ]
    machine_of_type = {
        tag["Value"]: m for m in machines for tag in m["Tags"] if "node-type" in tag["Key"]
    }
    assert machine_of_type.keys() == config["available_node_types"].keys()
    for name, machine in machine_of_type.items():
        assert (
            machine["InstanceType"]
            == config["available_node_types"][name]["node_config"]["InstanceType"]
        )
        assert (machine.get("InstanceLifecycle") == "spot") == name.startswith("train")
        (disk,) = config["available_node_types"][name]["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Throughput"] <= disk["Ebs"]["Iops"] / 4  # EC2's rule for gp3
        # Writes a 7B model's weights in less than a minute.
        assert disk["Ebs"]["Throughput"] * 2**20 * 60 > 7.3e9 * 2
        role = "stillroom-head" if name == "head" else "stillroom-worker"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["stillroom"]
