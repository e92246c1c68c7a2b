"""A replica's memory over requests of ever new shapes reaches a plateau: `make soak`.

Forwards of two layers of BERT-base, padded and packed, by the batcher of a replica; requests have
1 to 16 texts of 3 to 254 tokens. The figures are printed.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import BertConfig, BertModel

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.encoders.contract import Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.layers.packing import pack_attention
from stillroom.encoders.tokens.batch import Tokens
from stillroom.serving.replica.batching import Batcher
from support.tiny_models import word_piece_tokenizer

REQUESTS = int(os.environ.get("STILLROOM_SOAK_REQUESTS", "12000"))
CALLERS = 4
BATCH_TOKENS = 1024


def make_encoder(*, packed):
    backbone = BertModel(BertConfig(num_hidden_layers=2), add_pooling_layer=False).eval()
    contract = Contract(
        base="b", architecture="encoder", attention="bidirectional", pooling="mean",
        precision="float32", max_tokens=256, dims=(768,), space="s",
    )  # fmt: skip
    encoder = Encoder(contract, word_piece_tokenizer(), backbone)
    if packed:
        pack_attention(backbone)
    return encoder.eval()


def random_request(random_numbers):
    def text():
        tokens = min(254, max(3, round(random_numbers.lognormvariate(3.3, 1.0))))
        return Tokens([random_numbers.randrange(1000, 30_000) for _ in range(tokens)], 0)

    texts = 1 if random_numbers.random() < 0.7 else random_numbers.randint(2, 16)
    return [text() for _ in range(texts)]


async def send_requests(batcher, random_numbers, count):
    left = iter(range(count))

    async def call():
        for _ in left:
            await batcher.encode(random_request(random_numbers))

    await asyncio.gather(*(call() for _ in range(CALLERS)))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_memory_reaches_a_plateau(packed):
    encoder, threads = make_encoder(packed=packed), os.cpu_count()

    def forward(tokens, of_threads):
        torch.set_num_threads(of_threads)
        return encoder.encode_batch(tokens)

    async def main():
        batcher = Batcher(
            forward, batch_tokens=BATCH_TOKENS, max_wait_s=0.0, packed=packed, threads=threads,
            concurrent=True,
        )  # fmt: skip
        random_numbers = random.Random(0)
        for _ in range(6):
            await send_requests(batcher, random_numbers, REQUESTS // 6)
            yield psutil.Process().memory_info().rss / 2**20

    async def collect():
        return [mib async for mib in main()]

    memory = asyncio.run(collect())
    print(f"{'packed' if packed else 'padded'}: {[round(mib) for mib in memory]} MiB")
    assert memory[-1] <= 1.1 * memory[2]
