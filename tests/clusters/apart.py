"""Machines that share nothing but a bucket: the driver's folders are hidden from the workers' node.

Needs the right to make a mount namespace (`unshare -m`), as root has it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import pytest
from autoscaled import BIN, Autoscaled, free_port, until
from moto.server import ThreadedMotoServer

from stillroom.artifacts import Store
from tiny import tiny_decoder, tiny_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        boto3.client("s3").create_bucket(Bucket="stillroom")
        yield "s3://stillroom/runs"
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket, tmp_path_factory):
    """A head without CPUs, and a node that sees an empty folder where the driver has its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    apart = tmp_path_factory.mktemp("apart")
    (apart / "driver").mkdir()
    found = Autoscaled(folder, {}, 10)
    found.apart = apart
    node = subprocess.Popen(
        [
            "unshare", "--mount", "sh", "-ec",
            f'mount -t tmpfs none "{apart}/driver"; exec "$@"', "sh",
            str(BIN / "ray"), "start", "--block", f"--address={found.address}", "--num-cpus=4",
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ],
        env={**found.env, "STILLROOM_CACHE": f"{apart}/node"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(found.alive, 120, "the node does not come")
        yield found
    finally:
        found.end()
        node.kill()
        node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_every_stage_finds_on_its_own_machine_what_it_reads(cluster, bucket):
    models = {
        "TINY_TEACHER": str(tiny_decoder(cluster.apart / "teacher")),
        "TINY_STUDENT": str(tiny_encoder(cluster.apart / "student")),
    }
    done = subprocess.run(
        [
            sys.executable, "-m", "stillroom.cli", "run", str(ROOT / "jobs/recipes/tiny.yaml"),
            f"root={bucket}", "negatives.miner=[teacher, base]",
        ],
        env={
            **os.environ, **cluster.env, **models,
            "RAY_ADDRESS": cluster.address, "STILLROOM_CACHE": f"{cluster.apart}/driver",
        },
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = {artifact.stage for artifact in Store(bucket).published()}
    assert made == {"corpus", "teacher", "vectors", "negatives", "student", "report", "release"}
    # The node brought from the bucket what it read, each thing once.
    brought = [path.parent.parent.name for path in (cluster.apart / "node").rglob("contract.json")]
    assert {"teacher", "student"} <= set(brought)
