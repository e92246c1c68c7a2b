import os

# Before anything imports the hub's client or DeepSpeed, which read them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

import workers
from tiny import tiny_decoder, tiny_encoder


@pytest.fixture(autouse=True, scope="module")
def no_workers_stay():
    yield
    workers.dismiss()


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("models") / "encoder")
