"""The GPU benchmark, run on a CPU: its output and its arithmetic."""

import json

import pytest
import torch
import train_7b


def test_without_a_gpu_the_benchmark_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        train_7b.main([])


def test_the_tiny_size_trains_with_and_without_gradcache_on_a_cpu(capsys):
    train_7b.main(["--tiny", "--json"])
    plain, cached = json.loads(capsys.readouterr().out)["results"]
    assert (plain["gradcache"], cached["gradcache"]) == (False, True)
    assert plain["tokens_per_second"] > 0 and cached["tokens_per_second"] > 0
    assert plain["mfu"] is None  # the peak of a CPU is not known
    assert plain["estimated_gib"] > cached["estimated_gib"]


def test_the_table_names_model_batch_and_machine(capsys):
    train_7b.main(["--tiny", "--pairs", "2"])
    header, titles, plain, cached = capsys.readouterr().out.splitlines()
    assert "2 pairs of 8 + 32 tokens, 64 at once; CPU" in header
    assert titles.split() == ["tokens/s", "MFU", "HFU", "peak", "GiB", "estimated"]
    assert plain.startswith("plain") and cached.startswith("GradCache")
