"""The scripts that run on the nodes of infra/aws and infra/gcp."""

import datetime
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
LAUNCHER = INFRA / "launcher"


class Metadata(ThreadingHTTPServer):
    """A machine's metadata service, as AWS (version 2, with tokens) and Google Cloud have it.

    It fails once, says twice that there is no notice, and then that there is one.

    Attributes:
        seconds: of AWS's notice.
    """

    daemon_threads = True
    seconds = 100

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.questions = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_PUT(self):
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        known = self.path == "/latest/api/token" and seconds is not None
        self.answer(200 if known else 400, "a-token")

    def do_GET(self):
        self.server.questions += 1
        if self.server.questions == 1:
            return self.answer(503, "try again")
        noticed = self.server.questions > 3
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                return self.answer(401, "")
            now = datetime.datetime.now(datetime.UTC)
            at = now + datetime.timedelta(seconds=self.server.seconds)
            action = f'{{"action": "terminate", "time": "{at:%Y-%m-%dT%H:%M:%SZ}"}}'
            return self.answer(200, action) if noticed else self.answer(404, "")
        if self.path == "/computeMetadata/v1/instance/preempted":
            if self.headers.get("Metadata-Flavor") != "Google":
                return self.answer(403, "")
            return self.answer(200, "TRUE" if noticed else "FALSE")
        return self.answer(404, "")

    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def program(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", (85, 95)), ("gcp", (20, 25))])
def test_a_notice_drains_the_node_with_the_time_that_remains(cloud, seconds, tmp_path):
    # The head does not answer the first call.
    log = tmp_path / "calls"
    program(tmp_path, "ray", f'echo "$@" >> {log}; test $(wc -l < {log}) -gt 1')
    code = (LAUNCHER / "spot_notice.py").read_text()
    code = code.replace("POLL_INTERVAL_S = 2.0", "POLL_INTERVAL_S = 0.0")
    with Metadata() as metadata:
        done = subprocess.run(
            [sys.executable, "-c", code, cloud],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "METADATA_ADDRESS": f"http://127.0.0.1:{metadata.server_port}",
            },
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        metadata.shutdown()
    assert done.returncode == 0, done.stderr
    assert metadata.questions == 4
    _, call = log.read_text().splitlines()
    assert call.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message ")
    least, most = seconds
    assert least <= int(call.rpartition(" ")[2]) <= most


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_every_worker_watches_for_its_notice(cloud):
    config = yaml.safe_load((INFRA / cloud / "cluster.yaml").read_text())
    (watch,) = (c for c in config["worker_start_ray_commands"] if "spot_notice.py" in c)
    assert f"/launcher/spot_notice.py {cloud}" in watch
    assert config["file_mounts"]["/home/ubuntu/stillroom/launcher"] == "infra/launcher"
    assert not any("spot_notice" in c for c in config["head_start_ray_commands"])


def test_ray_has_the_command_that_the_watcher_calls():
    from ray.scripts.scripts import cli

    options = {option for p in cli.commands["drain-node"].params for option in p.opts}
    assert {"--reason", "--reason-message", "--deadline-remaining-seconds"} <= options


# --- disks --------------------------------------------------------------------------------------


def scratch(folder, names, mounted=()):
    """(finished scratch.sh, what it ran as root) on a machine with disks of these names."""
    disks = folder / "by-id"
    disks.mkdir()
    for name, target in names.items():
        (folder / target).touch()
        (disks / name).symlink_to(folder / target)
    bin = folder / "bin"
    bin.mkdir()
    program(bin, "sudo", f'echo "$@" >> {folder}/calls')
    program(bin, "mountpoint", f'case "$2" in {"|".join([*mounted, "-"])}) exit 0;; esac; exit 1')
    program(bin, "pvcreate", "exit 0")
    done = subprocess.run(
        ["sh", str(LAUNCHER / "scratch.sh")],
        env={"PATH": f"{bin}:{os.environ['PATH']}", "DISKS_BY_ID": str(disks)},
        capture_output=True, text=True,
    )  # fmt: skip
    log = folder / "calls"
    return done, log.read_text().splitlines() if log.exists() else []


def test_a_machine_without_disks_of_its_own_stays_as_it_is(tmp_path):
    done, calls = scratch(tmp_path, {"scsi-0Google_PersistentDisk_boot": "sda"})
    assert (done.returncode, calls) == (0, []), done.stderr


def test_one_disk_is_formatted_and_gets_tmp(tmp_path):
    names = {
        "nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1": "nvme1n1",
        "nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1-ns-1": "nvme1n1",  # the same disk
        "nvme-Amazon_Elastic_Block_Store_vol1": "nvme0n1",  # the root
        "nvme-Amazon_Elastic_Block_Store_vol1-part1": "nvme0n1p1",
    }
    done, calls = scratch(tmp_path, names)
    assert done.returncode == 0, done.stderr
    made = [call for call in calls if call.startswith(("mkfs", "vg", "lv"))]
    assert made == [f"mkfs.ext4 -q -F -E nodiscard -m 0 {tmp_path}/nvme1n1"]
    assert calls[-1] == "mount --bind /mnt/scratch/tmp /tmp"
    assert "chmod 1777 /mnt/scratch/tmp" in calls


def test_several_disks_become_one(tmp_path):
    names = {f"google-local-nvme-ssd-{n}": f"nvme0n{n + 1}" for n in range(4)}
    _, calls = scratch(tmp_path, names)
    disks = " ".join(f"{tmp_path}/nvme0n{n + 1}" for n in range(4))
    assert f"vgcreate -y scratch {disks}" in calls
    assert "lvcreate -y -n scratch -l 100%FREE -i 4 scratch" in calls
    assert "mkfs.ext4 -q -F -E nodiscard -m 0 /dev/scratch/scratch" in calls


def test_a_disk_that_is_mounted_is_not_formatted(tmp_path):
    name = {"nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1": "nvme1n1"}
    done, calls = scratch(tmp_path, name, mounted=["/mnt/scratch", "/tmp"])
    assert (done.returncode, calls) == (0, [])


def test_the_disks_of_aws_s_deep_learning_images_are_used_as_they_are(tmp_path):
    _, calls = scratch(tmp_path, {}, mounted=["/opt/dlami/nvme"])
    assert not any("mkfs" in call for call in calls)
    assert calls[-1] == "mount --bind /opt/dlami/nvme/tmp /tmp"
