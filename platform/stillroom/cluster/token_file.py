"""The file with the token that opens a Ray cluster: whoever reads it can run code there."""

import os
import stat
from pathlib import Path


def exposed_token_file() -> Path | None:
    """The token's file, if other users of this machine may read or change it.

    `ray get-auth-token --generate` and `ray start` write it with the mode that the umask leaves,
    which is 644 on most machines.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:  # there is none
        return None
    return path if mode & (stat.S_IRWXG | stat.S_IRWXO) else None
