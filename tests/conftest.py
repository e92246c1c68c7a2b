"""Fixtures that many test files share. Heavy imports wait for the fixture that needs them."""

import logging
import os
import sys

# Before anything imports the hub's client or DeepSpeed, which read them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two workers test side by side; what each starts may have one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's processes would have what the other leaves.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest

from support.goldens import golden, pytest_addoption  # noqa: F401 (pytest finds them here)

# Started first, the longest first, so that both workers end at about the same time.
LONGEST = (
    "tests/pipeline/test_run.py",
    "tests/serving/test_failures.py",
    "tests/training/test_driver.py",
    "tests/learning/engine/test_engines.py",
    "tests/cluster/test_jobs.py",
    "tests/stages/vectors/test_vectors.py",
    "tests/stages/vectors/test_streaming.py",
    "tests/stages/test_teacher.py",
    "tests/stages/test_published_teachers.py",
    "tests/serving/test_local_server.py",
    "tests/security/test_open_ports.py",
    "tests/training/test_checkpoints.py",
    "tests/cli/test_bad_input.py",
    "tests/stages/negatives/test_negatives.py",
    "tests/stages/negatives/test_mine_files.py",
    "tests/stages/test_student.py",
    "tests/stages/test_api_and_ensemble_teachers.py",
    "tests/stages/synthetic/test_synthetic_stage.py",
    "tests/stages/corpus/test_stage.py",
)


def pytest_collection_modifyitems(items):
    rank = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.location[0], len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def no_worker_processes_stay():
    yield
    if process_group := sys.modules.get("support.process_group"):
        process_group.stop_all()


@pytest.fixture(scope="session")
def _shared_ray():
    yield
    sys.modules["support.shared_ray"].stop()


@pytest.fixture(scope="module")
def ray_cluster(_shared_ray):
    """The address of a Ray with two CPUs, shared with other modules."""
    from support import shared_ray

    yield shared_ray.start()
    shared_ray.release()


@pytest.fixture(autouse=True)
def logs_untouched():
    """Loggers as they are at first: a worker's code, which tests call in their own process, has
    ours write elsewhere, and Ray's `logging_config` silences all."""
    logging.getLogger().setLevel(logging.WARNING)
    ours = logging.getLogger("stillroom")
    ours.setLevel(logging.NOTSET)
    ours.propagate = True
    ours.handlers.clear()


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    from support.tiny_models import tiny_decoder

    return tiny_decoder(tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    from support.tiny_models import tiny_encoder

    return tiny_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def bucket():
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="stillroom")
    yield "stillroom"
    server.stop()


@pytest.fixture
def faulty(bucket, tmp_path, monkeypatch):
    """A proxy before the bucket, through which stores that are opened now go; and their root."""
    from support.faulty_s3_proxy import FaultyProxy

    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("stillroom.storage.object_store.FIRST_WAIT_S", 0.01)
    proxy.root = f"s3://{bucket}/{tmp_path.name}"
    yield proxy
    proxy.stop()
