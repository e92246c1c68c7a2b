"""`stillroom serve` in a separate process."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading

from support.ray_head import free_port


@contextlib.contextmanager
def serve_process(release, **environment):
    """Yields the server's URL once it is ready, and a function that stops it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "stillroom.cli", "serve", str(release), "--port", str(port)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output: queue.Queue[str | None] = queue.Queue()

    def read_output():
        for line in process.stdout:
            output.put(line)
        output.put(None)

    threading.Thread(target=read_output, daemon=True).start()
    stopped = threading.Event()

    def stop():
        if not stopped.is_set():  # a second signal would end it at once
            stopped.set()
            process.send_signal(signal.SIGTERM)

    try:
        lines = []
        while not lines or not lines[-1].startswith("Ready:"):
            line = output.get(timeout=120)
            assert line is not None, "".join(lines)
            lines.append(line)
        yield f"http://127.0.0.1:{port}", stop
    finally:
        stop()
        try:
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
