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


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two systems are apart on the same examples.

    Attributes:
        loss: absolute difference of the losses, in nats.
        gradient: the largest ‖g − g'‖ / ‖g‖ of a leaf in one layer.
        leaf: which leaf that is, and its layer.
    """

    loss: float
    gradient: float
    leaf: str


def compare(ours: System, peer: System, rows: Rows) -> Difference:
    """Compares loss and gradients of two systems with the same weights.

    Raises:
        UserError: they differ by more than the tolerances.
    """
    (our_loss, our_gradients), (loss, gradients) = ours.gradients(rows), peer.gradients(rows)
    apart = {
        f'{path}, layer {layer}': float(np.linalg.norm(g - h) / np.linalg.norm(g))
        for path, leaf in our_gradients.items()
        for layer, (g, h) in enumerate(zip(leaf, gradients[path], strict=True))
    }
    leaf = max(apart, key=lambda name: (math.isnan(apart[name]), apart[name]))
    found = Difference(abs(our_loss - loss), apart[leaf], leaf)
    if not (found.loss <= LOSS_TOLERANCE and found.gradient <= GRADIENT_TOLERANCE):
        raise UserError(
            f'The systems do not compute the same, so they are not timed: losses {our_loss:.6f} '
            f'and {loss:.6f}, and the gradient of {leaf} is {found.gradient:.1e} off.'
        )
    return found


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
