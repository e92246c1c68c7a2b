"""Metrics become curves with each step once; a sink that fails stops no run."""

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from stillroom.config.scale import Tracking, TrainingWorkers
from stillroom.errors import UserError
from stillroom.storage.artifacts import Store
from stillroom.training.driver import fit
from stillroom.training.metric_sinks import (
    TensorBoard,
    Tracker,
    check_packages,
    open_sinks,
    progress_line,
)
from support.tensorboard_events import curves, events


def metrics(step, **more):
    return {
        "step": step, "steps": 40, "loss": 1 / step, "gradient_norm": 12.345, "padding": 0.123,
        "learning_rate": 1e-3, "tokens_per_second": 12345.6, "memory_gib": 2.34, **more,
    }  # fmt: skip


def test_a_progress_line_has_step_metrics_and_eta():
    assert progress_line(metrics(8, **{"ndcg@10": 0.5}), 200.2) == (
        "step 8/40  loss 0.1250  norm 12.3  lr 1.00e-03  12,346 tokens/s  padding 12%  2.3 GiB  "
        "ndcg@10 0.5000  ETA 0:03:21"
    )
    assert "ETA" not in progress_line(metrics(40), 0.0), "training is complete"


def test_tensorboard_is_the_only_sink_by_default(tmp_path):
    [sink] = open_sinks(Tracking(), "name", str(tmp_path / "a"), 0)
    assert isinstance(sink, TensorBoard)
    assert open_sinks(Tracking(tensorboard=False), "name", str(tmp_path / "b"), 0) == []
    assert not (tmp_path / "b").exists()


def test_a_resumed_curve_has_each_step_once(tmp_path):
    logs = tmp_path / "logs"
    crashed = Tracker(open_sinks(Tracking(), "name", str(logs), 0))
    for step in range(1, 6):
        crashed(metrics(step, **{"ndcg@10": 0.1 * step}))
    crashed.flush()  # as after a crash: the events are there, the end is not
    [old] = logs.iterdir()
    # As if it was written in an earlier second.
    old.rename(old.with_name(old.name.replace("tfevents.", "tfevents.0")))
    with Tracker(open_sinks(Tracking(), "name", str(logs), 3)) as resumed:
        for step in range(4, 7):
            resumed(metrics(step))
    points_by_tag = curves(logs)
    assert [step for step, _ in points_by_tag["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in points_by_tag["loss"]] == pytest.approx(
        [1 / s for s in range(1, 7)]
    )
    assert [step for step, _ in points_by_tag["ndcg_at_10"]] == [1, 2, 3]
    assert not {"step", "steps"} & points_by_tag.keys()


def test_tensorboard_s_files_can_be_in_a_bucket(monkeypatch):
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
        with Tracker(open_sinks(Tracking(), "name", "s3://bucket/runs/.logs/name", 0)) as tracker:
            tracker(metrics(1))
        [file_info] = s3.get_file_info(fs.FileSelector("bucket/runs/.logs/name"))
        content = s3.open_input_stream(file_info.path).read()
        assert [event.step for event in events(content) if event.summary.value] == [1]
    finally:
        server.stop()


@pytest.mark.parametrize("logs", ["hdfs://host/runs/.logs/x", "{}/file/x", "s3://b?endpoint=e/x"])
def test_a_root_that_tensorboard_cannot_write_gives_a_warning_and_no_error(logs, tmp_path, caplog):
    (tmp_path / "file").touch()
    logs = logs.format(tmp_path)
    assert open_sinks(Tracking(), "name", logs, 0) == []
    [line] = caplog.messages
    assert logs in line and "metrics.jsonl" in line


def test_a_sink_that_fails_is_dropped_and_the_others_continue(tmp_path, caplog):
    class Full:
        def write(self, step, metrics):
            raise OSError("no space left")

        def close(self, *, failed):
            raise AssertionError("it was dropped before")

    with Tracker([Full(), TensorBoard(str(tmp_path), 0)]) as tracker:
        for step in (1, 2):
            tracker(metrics(step))
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]
    [line] = caplog.messages
    assert "Full" in line and "no space left" in line


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_missing_tracking_package_is_reported_before_training(package, monkeypatch, tmp_path):
    find = check_packages.__globals__["importlib"].util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find(name)
    )
    check_packages(Tracking())
    with Store(str(tmp_path)).draft("teacher", "x", "0") as draft:
        with pytest.raises(UserError, match=rf"scale.tracking.{package}.*stillroom\[tracking\]"):
            fit(None, TrainingWorkers(), Tracking(**{package: "x"}), draft)
        assert not list(draft.path.iterdir())
