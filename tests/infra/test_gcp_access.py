"""infra/gcp/access.sh against a simulated project, which knows new things only after a while."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

GCP = Path(__file__).parents[2] / "infra" / "gcp"
SSH_FROM = "203.0.113.7/32"
VARIABLES = {"PROJECT": "my-project", "BUCKET": "my-bucket", "SSH_FROM": SSH_FROM}

# A `gcloud` whose project is a folder of files. IAM knows an account from the third question on.
GCLOUD = """#!{python} -S
import pathlib, sys
words = sys.argv[1:]
project = pathlib.Path({project!r})
with (project / "calls").open("a") as log:
    print(*words, file=log)
def fail(message):
    sys.exit("ERROR: " + message)
if words[:2] == ["services", "enable"]:
    (project / "enabled").touch()
    sys.exit()
(project / "enabled").exists() or fail("the service is not enabled")
if (project / "broken").exists() and words[0] == (project / "broken").read_text():
    fail("it does not work")
if "group-placement" in words:  # the kind of a policy to create
    words.remove("group-placement")
for verb in ("describe", "create", "update"):
    if verb in words:
        named = words[words.index(verb) + 1].partition("@")[0].replace("gs://", "")
        kind = " ".join(words[: words.index(verb)])
        thing = project / (kind + " " + named).replace("/", "_")
        if verb == "create":
            thing.exists() and fail(f"{{named}} already exists")
            thing.touch()
        thing.exists() or fail(f"{{named}} was not found")
        sys.exit()
if "add-iam-policy-binding" in words:
    account = words[words.index("--member") + 1].partition(":")[2].partition("@")[0]
    thing = project / f"iam service-accounts {{account}}"
    thing.exists() or fail(f"{{account}} does not exist")
    seen = thing.read_text()
    thing.write_text(seen + ".")
    len(seen) < 2 and fail(f"{{account}} does not exist")
    sys.exit()
fail("unknown command")
"""


class Project:
    """A simulated project, and the script run on it."""

    def __init__(self, folder):
        self.folder = folder
        gcloud = folder / "bin" / "gcloud"
        gcloud.parent.mkdir()
        gcloud.write_text(GCLOUD.format(python=sys.executable, project=str(folder)))
        gcloud.chmod(0o755)

    def run(self, **variables):
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", str(GCP / "access.sh")],
            env={"PATH": path, "RETRY_AFTER_S": "0", "ATTEMPTS": "4", **variables},
            capture_output=True, text=True,
        )  # fmt: skip

    def calls(self, containing=""):
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if containing in line]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("gcp"))
    done = project.run(**VARIABLES)
    assert done.returncode == 0, done.stderr
    return project


def test_a_fresh_project_is_made_ready_although_iam_is_slow(finished):
    services, *others = finished.calls()
    assert services.startswith("services enable ")
    for api in ("compute", "iam", "storage", "cloudresourcemanager"):
        assert f" {api}.googleapis.com" in services
    (bucket,) = finished.calls("storage buckets create")
    assert "gs://my-bucket --location us-central1 " in bucket
    assert "--public-access-prevention" in bucket
    # The accounts exist before anything names them.
    first_use = next(i for i, call in enumerate(others) if "--source-service-accounts" in call)
    assert any("service-accounts create stillroom-worker" in call for call in others[:first_use])
    # Six roles; the first two calls for an account fail.
    assert len(finished.calls("add-iam-policy-binding")) == 6 + 2 * 2


def test_the_script_can_be_run_again_and_then_creates_nothing(project):
    assert project.run(**VARIABLES).returncode == 0
    created = len(project.calls(" create "))
    again = project.run(**{**VARIABLES, "SSH_FROM": "198.51.100.0/24"})
    assert again.returncode == 0, again.stderr
    assert len(project.calls(" create ")) == created
    # A new range replaces the old one.
    assert "--source-ranges 198.51.100.0/24" in project.calls("firewall-rules update")[-1]


def test_a_run_that_stopped_half_way_is_continued(project):
    (project.folder / "broken").write_text("projects")
    done = project.run(**VARIABLES)
    assert done.returncode != 0 and "it does not work" in done.stderr
    (project.folder / "broken").unlink()
    assert project.run(**VARIABLES).returncode == 0
    assert len(project.calls("projects add-iam-policy-binding")) == 4 + 1


def test_only_ssh_is_open_and_only_to_the_configured_range(finished):
    ssh, nodes = finished.calls("firewall-rules create")
    assert f"--allow tcp:22 --source-ranges {SSH_FROM}" in ssh
    assert "--source-ranges" not in nodes and "--source-service-accounts stillroom-head@" in nodes
    assert finished.calls("0.0.0.0/0") == []


def test_a_worker_may_use_the_bucket_and_nothing_else(finished):
    granted = finished.calls("add-iam-policy-binding")
    worker = "serviceAccount:stillroom-worker@"
    assert {call.split()[1] for call in granted if worker in call} == {"buckets"}
    assert len({*finished.calls("projects add-iam-policy-binding")}) == 1


@pytest.mark.parametrize("left_out", [*VARIABLES])
def test_without_every_variable_nothing_is_created(project, left_out):
    done = project.run(**{k: v for k, v in VARIABLES.items() if k != left_out})
    assert done.returncode != 0 and left_out in done.stderr
    assert project.calls() == []


def test_ssh_cannot_be_opened_to_all_addresses(project):
    done = project.run(**{**VARIABLES, "SSH_FROM": "0.0.0.0/0"})
    assert done.returncode == 2 and "allows all addresses" in done.stderr
    assert project.calls() == []


def test_machines_are_in_the_region_of_the_script_and_use_its_network_and_accounts(finished):
    config = yaml.safe_load((GCP / "cluster.yaml").read_text())
    region = config["provider"]["region"]
    assert all(f"--region {region} " in c for c in finished.calls("subnets create"))
    assert config["provider"]["availability_zone"].startswith(f"{region}-")
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        (interface,) = node["networkInterfaces"]
        assert interface["subnetwork"].endswith(f"regions/{region}/subnetworks/stillroom")
        (account,) = node["serviceAccounts"]
        role = "stillroom-head" if name == "head" else "stillroom-worker"
        assert account["email"].startswith(f"{role}@")
        assert finished.calls(f"service-accounts create {role} ")


def test_machines_that_train_share_a_compact_placement_of_their_type(finished):
    config = yaml.safe_load((GCP / "cluster.yaml").read_text())
    region = config["provider"]["region"]
    project = config["provider"]["project_id"]
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        if not name.startswith("train"):
            assert "resourcePolicies" not in node
            continue
        policy = f"stillroom-{name.removeprefix('train-')}"
        assert node["resourcePolicies"] == [
            f"projects/{project}/regions/{region}/resourcePolicies/{policy}"
        ]
        (created,) = finished.calls(f"resource-policies create group-placement {policy} ")
        assert f"--region {region} --collocation collocated" in created
        # Compute Engine refuses a compact placement of machines that it may move.
        assert node["scheduling"]["onHostMaintenance"] == "TERMINATE"
        assert node["networkInterfaces"][0]["nicType"] == "GVNIC"
