import os

# Before anything imports the hub's client or DeepSpeed, which read them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two workers test side by side; what each starts may have one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tiny import tiny_decoder, tiny_encoder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("models") / "encoder")


# Begun first, so that two workers end at about the same time.
LONGEST = (
    "tests/test_pipeline.py",
    "tests/learning/test_engine.py",
    "tests/stages/test_fit.py",
    "tests/test_job.py",
    "tests/serving/test_server.py",
)


def pytest_collection_modifyitems(items):
    place = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.location[0], len(LONGEST)))
