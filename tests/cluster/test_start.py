"""Ray starts on a busy machine too, or it is said what to do."""

import inspect

import pytest
import ray
from ray._private import node, services

from stillroom.cluster import ray_private
from stillroom.cluster.start import RayNotStarted, start_ray


@pytest.fixture
def registers_at(monkeypatch):
    """Makes nodes register at the n-th look; time passes only between looks."""

    def registers_at(number, seconds_between=40.0):
        looks, now = [], [0.0]

        def get_node(gcs_address, node_id):
            looks.append(node_id)
            if len(looks) < number:
                raise RuntimeError("the node is not there")
            return {"node_id": node_id}

        def pass_time(_):
            now[0] += seconds_between

        monkeypatch.setattr(services, "get_node", get_node)
        monkeypatch.setattr(ray_private.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(ray_private.time, "sleep", pass_time)
        return get_node

    return registers_at


def test_a_node_that_registers_after_ray_s_30_seconds_is_waited_for(registers_at):
    before = registers_at(3)
    with ray_private.wait_for_slow_node(100):
        assert services.get_node("127.0.0.1:1", "a node") == {"node_id": "a node"}
    assert services.get_node is before


def test_a_node_that_never_registers_is_not_waited_for_for_ever(registers_at):
    registers_at(1000)
    with ray_private.wait_for_slow_node(100), pytest.raises(RuntimeError, match="not there"):
        services.get_node("127.0.0.1:1", "a node")


def test_a_ray_that_does_not_start_is_an_error_that_says_what_to_do(monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RayNotStarted) as raised:
        start_ray(num_cpus=2)
    assert "timed out during startup" in raised.value.problem
    assert "ray start --head" in raised.value.fix and "RAY_ADDRESS" in raised.value.fix
    assert raised.value.code == 1


def test_ray_looks_for_its_node_where_we_wait_for_it():
    source = inspect.getsource(node.Node.__init__)
    assert "ray._private.services.get_node(" in source
