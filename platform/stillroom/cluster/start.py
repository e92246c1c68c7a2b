"""Starts Ray on this machine, however busy that is."""

import os
from typing import Any

import ray

from stillroom.cluster.ray_private import wait_for_slow_node
from stillroom.errors import UserError, one_line

START_S = 120  # for each step of a start that takes two seconds on an idle machine
HEAD_WAIT_VARIABLE = "RAY_gcs_server_port_wait_time_s"  # Ray's, for the first step: 30 by default


class RayNotStarted(UserError):
    """Ray does not start on this machine."""

    code = 1


def start_ray(**options: Any) -> None:
    """Starts a Ray that only this process uses, and joins it.

    Args:
        options: of `ray.init`.

    Raises:
        RayNotStarted: when it does not start.
    """
    os.environ.setdefault(HEAD_WAIT_VARIABLE, str(START_S))
    try:
        with wait_for_slow_node(START_S):
            # Only RAY_ADDRESS names a cluster: another cluster on this machine may be somebody
            # else's.
            ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # Ray has no type for it
        folder = os.environ.get("RAY_TMPDIR", "/tmp") + "/ray/session_latest/logs"
        raise RayNotStarted(
            "Ray",
            f"does not start on this machine: {one_line(error, 300)}",
            f"Its processes say why in {folder}. Where only time or memory is short, run it again "
            "with less beside it, or start Ray with `ray start --head` and set RAY_ADDRESS",
        ) from error
