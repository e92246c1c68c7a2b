"""Connects to a Ray cluster and explains refused connections."""

import re
import socket

import grpc
import ray
from ray.exceptions import AuthenticationError

from stillroom.cluster.ray_private import request_cluster_id
from stillroom.errors import UserError, one_line

CONNECT_TIMEOUT_S = 10
HOST_PORT = re.compile(r"(?:\w+://)?(\[[^\]]+\]|[^/\[\]]+):(\d+)/*")


class TokenRefused(UserError):
    """The cluster requires another token than ours."""

    code = 1


def join_cluster(address: str, *, log_to_driver: bool = True) -> None:
    """Joins the running cluster that RAY_ADDRESS names.

    Args:
        log_to_driver: whether output of its workers is printed here.

    Raises:
        UserError: when it cannot be reached, or refuses our token.
    """
    where = f"RAY_ADDRESS={address}"
    try:
        check_port_open(address)
        _check_token(address)
        ray.init(address=address, log_to_driver=log_to_driver)
    except AuthenticationError as error:
        raise token_refused(where) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            where,
            f"the cluster cannot be reached: {one_line(error)}",
            "Start it (`ray start --head`), correct the address, or unset RAY_ADDRESS to "
            "run on this machine",
        ) from error


def check_port_open(address: str) -> None:
    """Raises OSError where nothing listens; Ray itself would retry for minutes."""
    if match := HOST_PORT.fullmatch(address):
        socket.create_connection((match[1].strip("[]"), int(match[2])), CONNECT_TIMEOUT_S).close()


def _check_token(address: str) -> None:
    """Raises AuthenticationError for a wrong token; Ray itself would retry, and then report that
    the cluster cannot be reached."""
    if match := HOST_PORT.fullmatch(address):
        try:
            request_cluster_id(f"{match[1]}:{match[2]}", CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise AuthenticationError("the token is missing or incorrect") from error


def token_refused(where: str) -> TokenRefused:
    """The error to raise where a cluster refuses our token."""
    return TokenRefused(
        where,
        "the cluster refuses our token, or requires one and none is set",
        "Use the one that `ray get-auth-token` prints on its head: in RAY_AUTH_TOKEN, in a file "
        "that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token. RAY_AUTH_MODE must be token",
    )
