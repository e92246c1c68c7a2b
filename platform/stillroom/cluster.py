"""Doors to a Ray cluster: how one is joined, and what is said when it does not let us in."""

import re
import socket

import ray
from ray.exceptions import AuthenticationError

from stillroom.errors import UserError

REACH_S = 10  # seconds in which a cluster's head answers


class Refused(UserError):
    """A cluster that wants another token."""

    code = 1


def join(address: str, *, log_to_driver: bool = True) -> None:
    """Joins the running cluster that RAY_ADDRESS names.

    Args:
        log_to_driver: whether what its workers print is printed here.

    Raises:
        UserError: when it cannot be reached, or does not take our token.
    """
    where = f"RAY_ADDRESS={address}"
    try:
        knock(address)
        ray.init(address=address, log_to_driver=log_to_driver)
    except AuthenticationError as fault:
        raise refused(where) from fault
    except (OSError, ValueError, RuntimeError) as fault:
        raise UserError(
            where,
            f"the cluster cannot be reached: {' '.join(str(fault).split())}",
            "Start it (`ray start --head`), correct the address, or unset RAY_ADDRESS to "
            "run on this machine",
        ) from fault


def knock(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would go on trying for minutes."""
    if named := re.fullmatch(r"(?:\w+://)?\[?([^/\[\]]+)\]?:(\d+)/*", address):
        socket.create_connection((named[1], int(named[2])), timeout=REACH_S).close()


def refused(where: str) -> Refused:
    return Refused(
        where,
        "the cluster does not take our token, or wants one and we have none",
        "Give the one that `ray get-auth-token` prints on its head: in RAY_AUTH_TOKEN, in a file "
        "that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token; RAY_AUTH_MODE must be token",
    )
