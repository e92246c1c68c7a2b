"""Figures become curves, each step once, and never cost a run."""

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from stillroom.config.scale import Tracking, Workers
from stillroom.errors import UserError
from stillroom.storage.artifacts import Store
from stillroom.training.driver import fit
from stillroom.training.metric_sinks import TensorBoard, Tracker, check, progress, sinks
from support.tensorboard_events import curves, events


def figures(step, **more):
    return {
        "step": step, "steps": 40, "loss": 1 / step, "gradient_norm": 12.345, "padding": 0.123,
        "learning_rate": 1e-3, "tokens_per_second": 12345.6, "memory_gib": 2.34, **more,
    }  # fmt: skip


def test_a_line_of_progress_says_where_it_is_and_when_it_ends():
    assert progress(figures(8, **{"ndcg@10": 0.5}), 200.2) == (
        "step 8/40  loss 0.1250  norm 12.3  lr 1.00e-03  12,346 tokens/s  padding 12%  2.3 GiB  "
        "ndcg@10 0.5000  ETA 0:03:21"
    )
    assert "ETA" not in progress(figures(40), 0.0), "it is there"


def test_tensorboard_alone_is_written_unless_more_is_asked_for(tmp_path):
    [only] = sinks(Tracking(), "name", str(tmp_path / "a"), 0)
    assert isinstance(only, TensorBoard)
    assert sinks(Tracking(tensorboard=False), "name", str(tmp_path / "b"), 0) == []
    assert not (tmp_path / "b").exists()


def test_a_resumed_curve_is_drawn_once(tmp_path):
    logs = tmp_path / "logs"
    crashed = Tracker(sinks(Tracking(), "name", str(logs), 0))
    for step in range(1, 6):
        crashed(figures(step, **{"ndcg@10": 0.1 * step}))
    crashed.flush()  # what a crash leaves: the events, and no end
    [old] = logs.iterdir()
    old.rename(old.with_name(old.name.replace("tfevents.", "tfevents.0")))  # of an earlier second
    with Tracker(sinks(Tracking(), "name", str(logs), 3)) as resumed:
        for step in range(4, 7):
            resumed(figures(step))
    drawn = curves(logs)
    assert [step for step, _ in drawn["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in drawn["loss"]] == pytest.approx([1 / s for s in range(1, 7)])
    assert [step for step, _ in drawn["ndcg_at_10"]] == [1, 2, 3]
    assert not {"step", "steps"} & drawn.keys()


def test_tensorboard_s_files_can_lie_in_a_bucket(monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3 = fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True)
        s3.create_dir("bucket")
        with Tracker(sinks(Tracking(), "name", "s3://bucket/runs/.logs/name", 0)) as tracker:
            tracker(figures(1))
        [found] = s3.get_file_info(fs.FileSelector("bucket/runs/.logs/name"))
        content = s3.open_input_stream(found.path).read()
        assert [event.step for event in events(content) if event.summary.value] == [1]
    finally:
        server.stop()


@pytest.mark.parametrize("logs", ["hdfs://host/runs/.logs/x", "{}/file/x", "s3://b?endpoint=e/x"])
def test_a_root_that_tensorboard_cannot_write_costs_a_line_and_no_run(logs, tmp_path, caplog):
    (tmp_path / "file").touch()
    logs = logs.format(tmp_path)
    assert sinks(Tracking(), "name", logs, 0) == []
    [line] = caplog.messages
    assert logs in line and "metrics.jsonl" in line


def test_a_sink_that_fails_later_is_left_out_and_the_others_go_on(tmp_path, caplog):
    class Full:
        def write(self, step, figures):
            raise OSError("no space left")

        def close(self, *, failed):
            raise AssertionError("it was left out")

    with Tracker([Full(), TensorBoard(str(tmp_path), 0)]) as tracker:
        for step in (1, 2):
            tracker(figures(step))
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]
    [line] = caplog.messages
    assert "Full" in line and "no space left" in line


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_missing_package_is_said_before_anything_is_trained(package, monkeypatch, tmp_path):
    find = check.__globals__["importlib"].util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find(name)
    )
    check(Tracking())
    with Store(str(tmp_path)).draft("teacher", "x", "0") as draft:
        with pytest.raises(UserError, match=rf"scale.tracking.{package}.*stillroom\[tracking\]"):
            fit(None, Workers(), Tracking(**{package: "x"}), draft)
        assert not list(draft.path.iterdir())
