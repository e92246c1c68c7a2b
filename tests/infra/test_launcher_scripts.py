"""The scripts that run on the nodes of infra/aws and infra/gcp."""

import datetime
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
LAUNCHER = INFRA / "launcher"


GCP_MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"


class Metadata(ThreadingHTTPServer):
    """A machine's metadata service, as AWS (version 2, with tokens) and Google Cloud have it.

    It fails once, says twice that there is no notice, and then that there is one.

    Attributes:
        seconds: of AWS's notice.
        maintenance: whether Google Cloud's notice is of maintenance.
    """

    daemon_threads = True
    seconds = 100

    def __init__(self, maintenance=False):
        super().__init__(("127.0.0.1", 0), Answer)
        self.questions = 0
        self.maintenance = maintenance
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_PUT(self):
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        known = self.path == "/latest/api/token" and seconds is not None
        self.answer(200 if known else 400, "a-token")

    def do_GET(self):
        if self.path != GCP_MAINTENANCE:
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
        if self.path.startswith("/computeMetadata/") and (
            self.headers.get("Metadata-Flavor") != "Google"
        ):
            return self.answer(403, "")
        if self.path == GCP_MAINTENANCE:
            maintained = noticed and self.server.maintenance
            return self.answer(200, "TERMINATE_ON_HOST_MAINTENANCE" if maintained else "NONE")
        if self.path == "/computeMetadata/v1/instance/preempted":
            taken = noticed and not self.server.maintenance
            return self.answer(200, "TRUE" if taken else "FALSE")
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


@pytest.mark.parametrize(
    ("cloud", "maintenance", "seconds"),
    [("aws", False, (85, 95)), ("gcp", False, (20, 25)), ("gcp", True, (285, 295))],
)
def test_a_notice_drains_the_node_with_the_time_that_remains(cloud, maintenance, seconds, tmp_path):
    # The head does not answer the first call.
    log = tmp_path / "calls"
    program(tmp_path, "ray", f'echo "$@" >> {log}; test $(wc -l < {log}) -gt 1')
    code = (LAUNCHER / "spot_notice.py").read_text()
    code = code.replace("POLL_INTERVAL_S = 2.0", "POLL_INTERVAL_S = 0.0")
    with Metadata(maintenance) as metadata:
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


def test_systemd_leaves_ray_running_when_google_cloud_presses_the_power_button():
    """It does so with the notice; systemd would end all processes of the machine at once."""
    commands = yaml.safe_load((INFRA / "gcp" / "cluster.yaml").read_text())[
        "worker_start_ray_commands"
    ]
    (inhibit,) = (c for c in commands if "systemd-inhibit" in c)
    assert commands.index(inhibit) < next(i for i, c in enumerate(commands) if "ray start" in c)
    assert inhibit.startswith("sudo setsid --fork flock --nonblock ")
    assert "--what=handle-power-key --mode=block" in inhibit and "sleep infinity" in inhibit


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


# --- packages -----------------------------------------------------------------------------------

NVIDIA, EFA = {"vendor": "0x10de"}, {"vendor": "0x1d0f", "device": "0xefa2"}
ELASTIC_DISK = {"vendor": "0x1d0f", "device": "0x8061"}


def install(folder, *devices, bare=False, **programs):
    """(finished install.sh, what it ran to change the machine), on a machine with these devices.

    Args:
        bare: apt has installed nothing yet.
        programs: shell scripts of programs that answer for the machine.
    """
    for number, files in enumerate(devices):
        device = folder / "pci" / str(number)
        device.mkdir(parents=True)
        for name, content in files.items():
            (device / name).write_text(f"{content}\n")
    bin, log = folder / "bin", folder / "calls"
    for path in (bin, folder / "uv" / "bin", folder / "stillroom" / "requirements"):
        path.mkdir(parents=True)
    for name in ("cat", "grep"):
        (bin / name).symlink_to(shutil.which(name))
    scripts = {"python3": "exit 0", "sleep": "exit 0", "sudo": f'echo "$@" >> {log}', **programs}
    if not bare:
        scripts |= {"g++": "exit 0", "pvcreate": "exit 0"}
    for name, script in scripts.items():
        program(bin, name.replace("_", "-"), script)
    for name in ("uv", "pip"):
        program(folder / "uv" / "bin", name, f'echo {name} "$@" >> {log}')
    done = subprocess.run(
        ["/bin/sh", str(LAUNCHER / "install.sh")],
        env={"PATH": str(bin), "HOME": str(folder), "PCI_DEVICES": str(folder / "pci")},
        capture_output=True, text=True,
    )  # fmt: skip
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(("device", "torch"), [(NVIDIA, "torch"), (ELASTIC_DISK, "torch-cpu")])
def test_a_machine_without_a_gpu_gets_the_cpu_build_of_torch(device, torch, tmp_path):
    done, calls = install(tmp_path, device, nvidia_smi="exit 0")
    assert done.returncode == 0, done.stderr
    assert calls[0] == "pip install --quiet --require-hashes --no-deps -r uv.txt"
    first, second = (call for call in calls if call.startswith("uv pip"))
    assert first.endswith(f"-r {torch}.txt") and second.endswith("-r requirements.txt")
    assert ("download.pytorch.org/whl/cpu" in first) == (torch == "torch-cpu")
    assert all("--require-hashes --no-deps" in call for call in (first, second))


def test_a_gpu_whose_driver_does_not_work_is_no_machine_for_cpus(tmp_path):
    done, calls = install(tmp_path, NVIDIA, nvidia_smi="exit 9")
    assert done.returncode == 1 and "no NVIDIA driver" in done.stderr
    assert calls == []


def test_a_driver_that_is_still_being_loaded_is_waited_for(tmp_path):
    loaded = tmp_path / "loaded"
    done, calls = install(tmp_path, NVIDIA, nvidia_smi=f"test -e {loaded} || ! : > {loaded}")
    assert done.returncode == 0 and any(call.endswith("-r torch.txt") for call in calls)


@pytest.mark.parametrize("library", ["libnccl-net.so (libc6) => /opt/amazon/ofi-nccl/lib", ""])
def test_a_machine_with_efa_has_nccl_s_plugin_for_it(library, tmp_path):
    done, calls = install(tmp_path, NVIDIA, EFA, nvidia_smi="exit 0", ldconfig=f'echo "{library}"')
    assert (done.returncode == 0) == bool(calls) == bool(library)
    assert library or "aws-ofi-nccl" in done.stderr


def test_a_new_machine_s_locks_are_waited_for(tmp_path):
    """Updates that a machine installs when it starts hold apt's locks."""
    log = tmp_path / "calls"
    locked = f'echo "$@" >> {log}; test "$2" != update || test $(grep -c update {log}) -gt 2'
    done, calls = install(tmp_path, bare=True, sudo=locked)
    assert done.returncode == 0, done.stderr
    assert calls[:3] == ["apt-get update -qq"] * 3
    assert re.search(r"apt-get -o DPkg::Lock::Timeout=\d{3} install .* g\+\+ lvm2", calls[3])
    assert "DEBIAN_FRONTEND=noninteractive" in calls[3]


def test_the_python_of_nodes_is_the_image_s():
    dockerfile = (INFRA / "docker" / "Dockerfile").read_text()
    (python,) = set(re.findall(r"FROM python:([\d.]+)-slim", dockerfile))
    script = (LAUNCHER / "install.sh").read_text()
    assert re.findall(r"uv venv --quiet --python (\S+)", script) == [python]
