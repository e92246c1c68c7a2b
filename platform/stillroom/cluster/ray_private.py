"""The only file that uses modules which Ray does not document.

Each function documents what it uses of Ray, why no documented interface suffices, and what breaks
when Ray changes it. Imports are inside the functions, because the CLI and the router import this
module and have to start fast.

A new version of Ray: add it to `TESTED_RAY_VERSIONS` and to pyproject.toml, and run all tests.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TESTED_RAY_VERSIONS = ("2.60.0",)
NODE_POLL_S = 0.2


def autoscaler_config() -> Any:
    """The cluster config that an autoscaler reports, a protobuf `ClusterConfig`; None without one.

    Why: it holds the node groups with their maximum counts. Ray Train and Ray Data size themselves
    by it, and nothing documented returns it.

    Breaks: the check that the cluster can ever hold a stage's resources (`capacity`).
    """
    from ray._private.state import state

    return state.get_cluster_config()


def working_dir_excludes() -> list[str]:
    """Patterns that Ray leaves out of every working directory, such as `.git`.

    Why: `stillroom submit` lists the files to send before it sends them.

    Breaks: the list of files, and with it the refusal of recipes whose files are not among them.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes

    return [*get_runtime_env_default_excludes()]


def walk_working_dir(
    folder: Path, excludes: Sequence[str], visit: Callable[[Path], None], *, use_gitignore: bool
) -> None:
    """Calls `visit` with every path of the folder that Ray would put into a job's package.

    Why: Ray's own walk reads .gitignore and .rayignore; a different reading of them would list
    other files than the sent ones.

    Breaks: as `working_dir_excludes`.

    Raises:
        OSError: when a file cannot be read.
    """
    from ray._private.runtime_env import packaging

    quiet = logging.getLogger(f"{__name__}.walk")
    quiet.setLevel(logging.WARNING)
    packaging._dir_travel(
        folder,
        [packaging._get_excludes(folder, list(excludes))],
        visit,
        include_gitignore=use_gitignore,
        logger=quiet,
    )


def max_package_bytes() -> int:
    """The largest working directory that Ray sends.

    Why: Ray checks it only when everything is packed, and does not name the large files.

    Breaks: the refusal of folders that are too large, with their largest parts.
    """
    from ray._private.runtime_env import packaging

    return int(packaging.GCS_STORAGE_MAX_SIZE)


def request_cluster_id(address: str, timeout_s: float) -> None:
    """Asks a head for its cluster's id, with the token of this process.

    Why: the cheapest request that a head authenticates. `ray.init` retries a refused token for
    minutes, and then reports that nothing is there.

    Breaks: the message that the token is wrong; joining then fails late, with Ray's own words.

    Raises:
        grpc.RpcError: UNAUTHENTICATED when the token is refused.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with init_grpc_channel(address) as channel:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=timeout_s)


@contextlib.contextmanager
def wait_for_slow_node(seconds: float) -> Iterator[None]:
    """Inside this block `ray.init` waits that long for the node that it starts to register.

    Why: Ray gives up after 30 seconds, which no setting changes; a busy machine needs more.

    Breaks: on a busy machine a run ends before its first stage.
    """
    from ray._private import services

    get_node = services.get_node

    def get_node_later(gcs_address: str, node_id: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(NODE_POLL_S)

    services.get_node = get_node_later
    try:
        yield
    finally:
        services.get_node = get_node


def handle_worker_output(
    name: str, handler: Callable[[dict[str, Any]], None], *, print_too: bool
) -> None:
    """Calls `handler` with the lines that workers print, as Ray forwards them to the driver.

    Why: Ray can only print them. They belong in the run's log.

    Breaks: workers' lines are missing in the log, or are printed twice.

    Args:
        name: of the handler; one of this name is replaced.
        print_too: whether Ray still prints them itself.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler(name)
    dispatcher.add_handler(name, handler)
    if not print_too:
        dispatcher.remove_handler("ray_print_logs")


def autoscaler_events(lines: Sequence[str]) -> list[str]:
    """The autoscaler's events among the lines that it sends to the driver.

    Why: among them it sends its whole state every five seconds; Ray filters what it prints.

    Breaks: the log holds that state, or no events.
    """
    from ray._private.worker import filter_autoscaler_events

    return [*filter_autoscaler_events(lines)]


def ray_data_loggers() -> tuple[str, ...]:
    """Names of the loggers that report a dataset's execution.

    Why: Ray Data sets the level of `ray.data` when it is imported, and a filter of that logger does
    not see messages of its child loggers.

    Breaks: Ray Data's lines about each dataset are in the log, in addition to our lines with the
    same content.
    """
    return ("ray.data._internal.execution.streaming_executor", "ray.data._internal.progress")


def controller_callbacks() -> tuple[Any, Any]:
    """Ray Train's base classes for callbacks: of the worker group, and of the controller.

    Why: Ray Train restarts workers after every error. Only a callback in the controller can end a
    run at an error that the user has to correct, or reach a group that Ray Train has forgotten.

    Breaks: such a run is repeated `max_failures` times before it ends; and a run that lost a worker
    while it started waits for ever for the resources of its first workers.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    return WorkerGroupCallback, ControllerCallback


def power_of_two_request_router() -> Any:
    """Ray Serve's class that chooses among a deployment's replicas.

    Why: Serve accepts a custom class in its documented `request_router_config`, but documents no
    base class with Serve's own choice. Our class reads queue lengths from it.

    Breaks: the router does not start, because it reads the inputs of its policies there.
    """
    from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

    return PowerOfTwoChoicesRequestRouter
