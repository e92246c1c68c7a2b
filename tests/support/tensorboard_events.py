"""What TensorBoard would draw of a folder of event files."""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every tag, in order. As in TensorBoard, a start hides what was drawn
    from its step on."""
    drawn: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in events(file.read_bytes()):
            if event.session_log.status == SessionLog.START:
                for tag, points in drawn.items():
                    drawn[tag] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                drawn.setdefault(value.tag, []).append((event.step, value.simple_value))
    return drawn


def events(content: bytes) -> Iterator[Event]:
    while content:
        (size,) = struct.unpack("Q", content[:8])
        yield Event.FromString(content[12 : 12 + size])  # length, its checksum, data, its checksum
        content = content[16 + size :]
