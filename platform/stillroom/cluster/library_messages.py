"""Messages of Ray and DeepSpeed that logs leave out, each by its words.

They ask nothing of a user, or repeat what our own lines say.
"""

import logging
import re

from stillroom.cluster.ray_private import ray_data_loggers

# Searched in every line that workers print, and in what Ray Data and Serve log in the driver.
IGNORED_MESSAGES = "|".join(
    (
        # Ray Train's own actor, whose arguments live as long as it does.
        r"Actor with class name: 'PreemptionWatcher' .* constructor arguments in the object store",
        # Ray Train, beside "Attempting to start training worker group", which says the same.
        r"Requesting resources: ",
        r"Setting up process group for: ",
        r"^DeepSpeed \S+ built successfully$",
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
    """Leaves the messages out of what libraries log in this process."""
    for name in (*ray_data_loggers(), "ray.serve"):
        logging.getLogger(name).addFilter(_accepts)  # once: a filter that is there is not added


def _accepts(record: logging.LogRecord) -> bool:
    return not is_ignored(record.getMessage())
