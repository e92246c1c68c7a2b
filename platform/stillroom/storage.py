"""Object storage by URI: whatever `pyarrow.fs` opens."""

import os
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from stillroom.errors import UserError


def open_uri(uri: str, where: str) -> tuple[Any, str]:
    """The file system of a URI such as `s3://bucket/prefix`, and the path in it.

    Amazon's endpoint is replaced by AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, where one is set.

    Raises:
        UserError: at `where`, when it cannot be reached or there is no such bucket.
    """
    parts = urlsplit(uri)
    try:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if parts.scheme == "s3" and endpoint and "endpoint_override" not in parts.query:
            place = urlsplit(endpoint)
            opened = fs.S3FileSystem(
                endpoint_override=place.netloc, scheme=place.scheme, allow_bucket_creation=False
            )
            path = f"{parts.netloc}{parts.path}"
        else:
            opened, path = fs.FileSystem.from_uri(uri)
        if opened.get_file_info(path.split("/")[0]).type == fs.FileType.NotFound:
            raise ValueError("there is no such bucket")
    except (OSError, ValueError) as fault:
        raise unreachable(where, fault) from fault
    return opened, path.rstrip("/")


def unreachable(where: str, fault: BaseException) -> UserError:
    reason = " ".join(str(fault).split())
    return UserError(
        where,
        f"cannot be opened: {reason}",
        "Correct the name, the credentials or the endpoint",
    )
