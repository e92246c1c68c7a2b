"""infra/aws on a simulated AWS: the stack, and the machines that Ray's own code starts in it."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

INFRA = Path(__file__).parents[2] / "infra"
BUCKET = "the-stack-s-bucket"  # moto's accounts are shared with other tests of the process
SSH_FROM = "203.0.113.7/32"
ZONE = "us-west-2a"


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
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/20", AvailabilityZone=ZONE)
        subnet = subnet["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        create_stack(Vpc=vpc, PublicSubnet=subnet)
        values = {
            "YOUR_SUBNETS": subnet,
            "YOUR_IMAGE": ec2.describe_images(MaxResults=5)["Images"][0]["ImageId"],
        }
        outputs = boto3.client("cloudformation").describe_stacks(StackName="stillroom")
        for output in outputs["Stacks"][0]["Outputs"]:
            (name,) = re.findall(r"YOUR_\w+", output["Description"])
            values[name] = output["OutputValue"]
        # What moto ignores in a stack.
        template = read_template()
        public = template["Resources"]["TrainingSubnet"]["Properties"]["MapPublicIpOnLaunch"]
        ec2.modify_subnet_attribute(
            SubnetId=values["YOUR_TRAINING_SUBNET"], MapPublicIpOnLaunch={"Value": public}
        )
        for output in ("H100Group", "A100Group"):
            (name,) = re.findall(r"YOUR_\w+", template["Outputs"][output]["Description"])
            values[name] = template["Outputs"][output]["Value"].removeprefix("!Ref ")
        text = (INFRA / "aws" / "cluster.yaml").read_text()
        yield yaml.safe_load(re.sub("|".join(values), lambda word: values[word[0]], text))
    server.stop()


def create_stack(**more):
    parameters = {
        "SshFrom": SSH_FROM, "Bucket": BUCKET, "TrainingRange": "10.0.96.0/24",
        "TrainingZone": ZONE, **more,
    }  # fmt: skip
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
    tagging = [s for s in head_policy["Statement"] if "ec2:CreateTags" in s["Action"]]
    assert [s["Condition"]["StringEquals"] for s in tagging] == [
        {"ec2:CreateAction": "RunInstances"},
        {"ec2:ResourceTag/ray-cluster-name": "stillroom"},
    ]
    pass_role = [s for s in head_policy["Statement"] if s["Action"] == "iam:PassRole"]
    worker = iam.get_role(RoleName="stillroom-worker")["Role"]["Arn"]
    assert [s["Resource"] for s in pass_role] == [worker]


# --- the machines -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(aws):
    """Node type → (its completed configuration, the machine that Ray starts)."""
    ec2 = boto3.client("ec2")
    groups = {group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    config = bootstrap_aws(prepare_config(aws))
    groups_after = ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupId"] for group in groups_after} == groups  # Ray would open SSH to all
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    types = config["available_node_types"]
    for name, kind in types.items():
        provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
    machines = [
        machine
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    ]
    machine_of_type = {
        tag["Value"]: m for m in machines for tag in m["Tags"] if "node-type" in tag["Key"]
    }
    assert machine_of_type.keys() == types.keys()
    return {name: (kind["node_config"], machine_of_type[name]) for name, kind in types.items()}


def test_ray_starts_the_configured_machines(started):
    for name, (node, machine) in started.items():
        assert machine["InstanceType"] == node["InstanceType"]
        assert (machine.get("InstanceLifecycle") == "spot") == name.startswith("train")
        (disk,) = node["BlockDeviceMappings"]
        assert disk["Ebs"]["Throughput"] <= disk["Ebs"]["Iops"] / 4  # EC2's rule for gp3
        # Writes a 7B model's weights in less than a minute.
        assert disk["Ebs"]["Throughput"] * 2**20 * 60 > 7.3e9 * 2
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        role = "stillroom-head" if name == "head" else "stillroom-worker"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        allowed = node["SecurityGroupIds"]  # of the machine, or of its interfaces
        assert len({*allowed}) == 1
        assert not machine["SecurityGroups"] or machine["SecurityGroups"][0]["GroupId"] in allowed


def test_the_resources_of_a_node_type_are_its_machine_s(aws):
    ec2 = boto3.client("ec2")
    for name, kind in aws["available_node_types"].items():
        machine = machine_type(kind["node_config"]["InstanceType"])
        offers = ec2.describe_instance_type_offerings(
            Filters=[{"Name": "instance-type", "Values": [machine["InstanceType"]]}]
        )
        assert offers["InstanceTypeOfferings"], "not in this region"
        gpus = machine.get("GpuInfo", {}).get("Gpus", [])
        assert sum(gpu["Count"] for gpu in gpus) == kind["resources"].get("GPU", 0)
        if name != "head":
            assert machine["VCpuInfo"]["DefaultVCpus"] == kind["resources"]["CPU"]
            label = kind["labels"].get("ray.io/accelerator-type")
            assert [gpu["Name"] for gpu in gpus] == ([label] if label else [])


def machine_type(name):
    """EC2's facts of a type."""
    (facts,) = boto3.client("ec2").describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    return facts


def test_every_network_card_of_a_machine_that_trains_has_an_efa(started):
    for name, (node, _) in started.items():
        interfaces = node.get("NetworkInterfaces", [])
        assert bool(interfaces) == name.startswith("train")
        if not interfaces:
            continue
        network = machine_type(node["InstanceType"])["NetworkInfo"]
        cards = Counter(interface["NetworkCardIndex"] for interface in interfaces)
        assert cards == Counter(range(network["MaximumNetworkCards"]))
        assert len(interfaces) == network["EfaInfo"]["MaximumEfaInterfaces"]
        primary, *others = interfaces
        # The primary interface has an address; the others carry NCCL's traffic only.
        assert (primary["NetworkCardIndex"], primary["DeviceIndex"]) == (0, 0)
        assert primary["InterfaceType"] == "efa"
        assert {(i["DeviceIndex"], i["InterfaceType"]) for i in others} == {(1, "efa-only")}
        # EC2 refuses the field where there are several interfaces.
        assert not any("AssociatePublicIpAddress" in interface for interface in interfaces)


def test_machines_that_train_share_a_placement_group_of_their_type_and_one_subnet(started):
    groups = {}
    for name, (node, machine) in started.items():
        if not name.startswith("train"):
            assert "Placement" not in node
            continue
        groups[node["Placement"]["GroupName"]] = node["InstanceType"]
        strategies = machine_type(node["InstanceType"])["PlacementGroupInfo"]["SupportedStrategies"]
        assert "cluster" in strategies
        (subnet,) = {interface["SubnetId"] for interface in node["NetworkInterfaces"]}
        assert machine["SubnetId"] == subnet
        assert {tuple(interface["Groups"]) for interface in node["NetworkInterfaces"]} == {
            tuple(started["head"][0]["SecurityGroupIds"])
        }
    assert len(groups) == 2
    for group in groups:
        resource = read_template()["Resources"][group]
        assert resource["Type"] == "AWS::EC2::PlacementGroup"
        assert resource["Properties"] == {"Strategy": "cluster"}


def test_the_training_subnet_reaches_the_internet_by_nat_and_the_bucket_directly(aws):
    """A machine with several interfaces has no public address, for an internet gateway."""
    (table,) = boto3.client("ec2").describe_route_tables(
        Filters=[{"Name": "tag:aws:cloudformation:logical-id", "Values": ["TrainingRoutes"]}]
    )["RouteTables"]
    routes = {r.get("DestinationCidrBlock", "buckets"): r for r in table["Routes"]}
    assert routes.keys() == {"10.0.0.0/16", "0.0.0.0/0", "buckets"}
    assert routes["0.0.0.0/0"]["NatGatewayId"]
    assert routes["buckets"]["GatewayId"].startswith("vpce-")
    association = read_template()["Resources"]["TrainingSubnetRoutes"]["Properties"]
    assert association == {"SubnetId": "!Ref TrainingSubnet", "RouteTableId": "!Ref TrainingRoutes"}


def test_a_node_tells_nccl_to_use_efa():
    (environment,) = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())[
        "initialization_commands"
    ]
    assert "FI_PROVIDER=efa" in environment and "NCCL_SOCKET_IFNAME=^lo," in environment
