import json
import re

import httpx
import pytest

from stillroom.serving.telemetry.metrics import RouterMetrics
from stillroom.serving.telemetry.request_record import RequestRecord
from support.in_process_router import in_process_router
from support.tiny_releases import make_release

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def log_and_metrics(tmp_path_factory):
    """The access log of a few requests, and the metrics after them."""
    folder = tmp_path_factory.mktemp("release")
    release = make_release(folder / "shared", shared_space=True)
    with in_process_router(release, access_log=str(folder / "access.jsonl")) as url:
        headers = {"x-request-id": "r-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        body = {"model": "tiny", "input": ["a secret text", "b"], "input_type": "query"}
        httpx.post(f"{url}/v1/embeddings", json=body, headers=headers)
        httpx.post(f"{url}/embed", json={"inputs": "a secret text", "dimensions": 3})
        httpx.get(f"{url}/v1/models/secret%20name", headers={"traceparent": "00-secret"})
        httpx.get(f"{url}/secret")
        metrics = httpx.get(f"{url}/metrics").text
    text = (folder / "access.jsonl").read_text()
    assert "secret" not in text + metrics
    unlabelled = re.sub(r',router="[^":]+:\d+"', "", metrics)
    assert unlabelled != metrics and "router" not in unlabelled
    return [json.loads(line) for line in text.splitlines()], unlabelled


def test_each_request_has_a_line_with_client_model_route_and_phases(log_and_metrics):
    first, second, third, fourth, _ = log_and_metrics[0]
    assert (first["request_id"], first["trace_id"]) == ("r-1", TRACE)
    expected = {"route": "/v1/embeddings", "status": 200, "model": "tiny/student", "texts": 2,
                "policy": "asymmetric", "client": "anonymous"}  # fmt: skip
    assert first | expected == first
    assert (first["phases"]["tokenise"], first["phases"]["encode"]) == (0.5, 0.125)
    assert first["bytes_in"] > 50 and first["tokens"] > 2
    assert (second["route"], second["status"], second["texts"]) == ("/embed", 422, 0)
    assert (third["route"], third["status"]) == ("/v1/models/{model}", 404)
    assert (third["trace_id"], fourth["route"], fourth["status"]) == (None, "none", 404)


def test_metrics_count_requests_texts_and_phases(log_and_metrics):
    for line in (
        'stillroom_requests_total{model="tiny/student",policy="asymmetric",'
        'route="/v1/embeddings",status="200"} 1.0',
        'stillroom_requests_total{model="none",policy="asymmetric",'
        'route="/embed",status="422"} 1.0',
        'stillroom_requests_total{model="none",policy="none",route="none",status="404"} 1.0',
        'stillroom_texts_total{client="anonymous",model="tiny/student"} 2.0',
        'stillroom_request_phase_seconds_sum{model="tiny/student",phase="wait"} 0.25',
        'stillroom_routed_requests_total{model="tiny/student",reason="student"} 1.0',
        'stillroom_ready_replicas{model="tiny/student"} 1.0',
        'stillroom_ongoing_requests{model="tiny/student"} 0.0',
        'stillroom_expected_wait_seconds{model="tiny/student"} 0.0',
    ):
        assert line in log_and_metrics[1].splitlines()


def test_a_phase_that_was_not_measured_is_not_counted():
    metrics, record = RouterMetrics(), RequestRecord(model="m", phases={"send": 0.25})
    metrics.count_request("/embed", record, 200, 0.5)
    text = metrics.render({}).decode()
    assert 'stillroom_request_phase_seconds_count{model="m",phase="send",' in text
    assert 'phase="encode"' not in text
