"""What TensorBoard would show of a run: its event files, read by hand."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(path: pathlib.Path) -> list[Event]:
    """The events of one file: records of 8 bytes of length, 4 of checksum, data, 4 of checksum."""
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack('<Q', content[:8])
        assert len(content) >= size + 16
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[size + 16 :]
    return found


def read_scalars(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """The scalars by step and tag; a session that starts at a step hides older ones from there."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted((workdir / 'tensorboard').glob('events.*')):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                steps = {step: scalars for step, scalars in steps.items() if step < event.step}
            for value in event.summary.value:
                steps.setdefault(event.step, {})[value.tag] = value.simple_value
    return steps
