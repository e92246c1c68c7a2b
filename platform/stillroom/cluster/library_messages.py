"""Messages of Ray that are left out of logs, as patterns.

They need no action by the user, or repeat our own log lines.
"""

import logging
import re

from stillroom.cluster.ray_private import ray_data_loggers

# Searched in every line that workers print, and in what Ray Data and Serve log in the driver.
IGNORED_MESSAGES = "|".join(
    (
        # Ray Train's own actor, whose arguments live as long as it does.
        r"Actor with class name: 'PreemptionWatcher' .* constructor arguments in the object store",
        # Ray Train also logs "Attempting to start training worker group", which says the same.
        r"Requesting resources: ",
        r"Setting up process group for: ",
        # Its cleaner asks a dashboard, which a Ray on one machine does not have.
        r"Failed to query Ray Train Controller actor state\. ",
        # Ray Data: our stages report their progress.
        r"^Starting execution of Dataset ",
        r"^Execution plan of Dataset ",
        r"Dataset \S+ execution finished in ",
        r"^Progress bars disabled\. ",
        # Ray Serve: `stillroom serve` starts Serve, and then its application in it.
        r"^Connecting to existing Serve app ",
    )
)
_pattern = re.compile(IGNORED_MESSAGES)


def is_ignored(line: str) -> bool:
    """Whether logs leave out a line that a library wrote."""
    return _pattern.search(line) is not None


def ignore_library_messages() -> None:
    """Removes these messages from libraries' logs in this process."""
    for name in (*ray_data_loggers(), "ray.serve"):
        logging.getLogger(name).addFilter(_accepts)  # added only once


def _accepts(record: logging.LogRecord) -> bool:
    return not is_ignored(record.getMessage())
