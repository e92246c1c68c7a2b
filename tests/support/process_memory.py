"""What processes hold in memory, as Linux counts it."""

from pathlib import Path

import psutil


def process_memory(pid="self"):
    """Bytes by kind: `Anonymous` is the process's own, `Pss_…` proportional where it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: 1024 * int(size.split()[0]) for name, size in (ln.split(":") for ln in lines)}


def with_descendants(process):
    """A `psutil.Process` and all processes below it; none when it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
