"""The curves that TensorBoard would draw from a folder of event files."""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every tag, in order. As in TensorBoard, a restart hides earlier points from
    its step on."""
    points_by_tag: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in events(file.read_bytes()):
            if event.session_log.status == SessionLog.START:
                for tag, points in points_by_tag.items():
                    points_by_tag[tag] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                points_by_tag.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points_by_tag


def events(content: bytes) -> Iterator[Event]:
    """The events of a file."""
    while content:
        (size,) = struct.unpack("Q", content[:8])
        yield Event.FromString(content[12 : 12 + size])  # length, its checksum, data, its checksum
        content = content[16 + size :]
