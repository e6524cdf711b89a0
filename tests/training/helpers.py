"""Reader of TensorBoard event files that parses their records itself."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog


def read_events(path: pathlib.Path) -> list[Event]:
    """Return the events of a file.

    A record has a length (8 bytes), a checksum (4 bytes), the data, and a checksum (4 bytes).
    """
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack('<Q', content[:8])
        assert len(content) >= size + 16
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[size + 16 :]
    return found


def read_scalars(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """Return the scalars by step and tag, as TensorBoard shows them.

    A session that starts at a step hides older scalars from that step on.
    """
    steps: dict[int, dict[str, float]] = {}
    for path in sorted((workdir / 'tensorboard').glob('events.*')):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:
                steps = {step: scalars for step, scalars in steps.items() if step < event.step}
            for value in event.summary.value:
                steps.setdefault(event.step, {})[value.tag] = value.simple_value
    return steps
