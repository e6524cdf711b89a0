"""Comparing what two systems compute, and timing several of them in turns."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping

import numpy as np
import tqdm

from experiments.peers.rows import Rows
from experiments.peers.systems import System
from malora_jax.errors import UserError

# The largest differences between float32 sums in another order that are no difference in method.
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# With such differences, a token between two experts that are nearly equal may go to the other one.
# The gradients of that linear in that layer are then apart, the router's most; of 180 at most two.
_MOST_CHOICES, _CHOICE_TOLERANCE = 2, 5e-2


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two systems are apart on the same examples.

    Attributes:
        loss: absolute difference of the losses, in nats.
        gradient: the largest ‖g − g'‖ / ‖g‖ of a leaf in one layer, but for those of `choices`.
        leaf: which leaf that is, and its layer.
        choices: linears, with their layers, in which a token went to another expert.
    """

    loss: float
    gradient: float
    leaf: str
    choices: list[str]


def compare(ours: System, peer: System, rows: Rows) -> Difference:
    """Compares loss and gradients of two systems with the same weights.

    Raises:
        UserError: they differ by more than the tolerances.
    """
    (our_loss, our_gradients), (loss, gradients) = ours.gradients(rows), peer.gradients(rows)
    apart: dict[str, dict[str, float]] = {}
    for path, leaf in our_gradients.items():
        linear, name = path.rsplit('/', 1)
        for layer, (g, h) in enumerate(zip(leaf, gradients[path], strict=True)):
            off = float(np.linalg.norm(g - h) / np.linalg.norm(g))
            apart.setdefault(f'{linear}, layer {layer}', {})[name] = off
    choices = _other_choices(apart)
    rest = {
        f'{name} of {linear}': off
        for linear, leaves in apart.items()
        for name, off in leaves.items()
        if linear not in choices
    }
    worst = max(rest, key=lambda name: (math.isnan(rest[name]), rest[name]))
    found = Difference(abs(our_loss - loss), rest[worst], worst, choices)
    if not (found.loss <= LOSS_TOLERANCE and found.gradient <= GRADIENT_TOLERANCE):
        raise UserError(
            f'The systems do not compute the same, so they are not timed: losses {our_loss:.6f} '
            f'and {loss:.6f}, and the gradient of {worst} is {found.gradient:.1e} off.'
        )
    return found


def _other_choices(apart: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Linears with a router whose gradients are off, by so little as one token makes."""
    found = [
        linear
        for linear, leaves in apart.items()
        if leaves.get('router', 0) > GRADIENT_TOLERANCE
        and max(leaves.values()) <= _CHOICE_TOLERANCE
    ]
    return found if len(found) <= _MOST_CHOICES else []


def time_in_turns(
    systems: Mapping[str, System], rows: Iterator[Rows], turns: int, steps: int
) -> tuple[dict[str, list[float]], list[Rows]]:
    """Trains all systems side by side, each of them on the same examples.

    In each turn a system makes some steps in a row. The first is not timed: it compiles, or has to
    get back memory that the other systems' steps have used since. Each turn starts with another
    system, so that none always follows the same one.

    Args:
        systems: by name.
        rows: what they are trained on.
        turns: how often each system gets its turn.
        steps: timed steps of a turn.

    Returns:
        Seconds of each timed step, by system, and the examples of these steps.
    """
    names = list(systems)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    timed: list[Rows] = []
    for turn in tqdm.trange(turns, desc='turns of every system'):
        untimed, *rest = itertools.islice(rows, 1 + steps)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            systems[name].step(untimed)
            seconds[name] += [_seconds(systems[name], step) for step in rest]
        timed += rest
    return seconds, timed


def _seconds(system: System, step: Rows) -> float:
    start = time.perf_counter()
    system.step(step)
    return time.perf_counter() - start
