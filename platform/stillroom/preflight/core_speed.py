"""What a CPU core of this machine reaches in matrix products, by a short probe."""

import time

import torch

from stillroom.encoders.layers.onednn_linear import use_onednn

SIZE, ROUNDS = 768, 8  # about a quarter of a second


def measure_core_flops() -> float:
    """Float32 FLOP/s of one thread in a linear layer, as our forwards run it: the best of some.

    By the thread's CPU time, so that other work on the machine hardly counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layers = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE, bias=False))
        use_onednn(layers)
        states = torch.randn(2048, SIZE)
        seconds = []
        with torch.inference_mode():
            for _ in range(ROUNDS):
                started = time.thread_time()
                layers(states)
                seconds.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return 2.0 * states.shape[0] * SIZE**2 / min(seconds)
