"""Doors to a Ray cluster: how one is joined, and what is said when it does not let us in."""

import re
import socket

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError

from stillroom.errors import UserError

REACH_S = 10  # seconds in which a cluster's head answers

PLACE = re.compile(r"(?:\w+://)?(\[[^\]]+\]|[^/\[\]]+):(\d+)/*")  # host and port


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
        _show_token(address)
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
    if named := PLACE.fullmatch(address):
        socket.create_connection((named[1].strip("[]"), int(named[2])), timeout=REACH_S).close()


def _show_token(address: str) -> None:
    """Raises AuthenticationError where it is a wrong one: Ray itself would go on trying, and then
    say that nothing is there."""
    if named := PLACE.fullmatch(address):
        with init_grpc_channel(f"{named[1]}:{named[2]}") as channel:
            asked = NodeInfoGcsServiceStub(channel).GetClusterId
            try:
                asked(GetClusterIdRequest(), timeout=REACH_S)
            except grpc.RpcError as fault:
                if fault.code() == grpc.StatusCode.UNAUTHENTICATED:
                    raise AuthenticationError("the token is missing or incorrect") from fault


def refused(where: str) -> Refused:
    return Refused(
        where,
        "the cluster does not take our token, or wants one and we have none",
        "Give the one that `ray get-auth-token` prints on its head: in RAY_AUTH_TOKEN, in a file "
        "that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token; RAY_AUTH_MODE must be token",
    )
