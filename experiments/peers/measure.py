"""Comparing what two systems compute, and timing several of them in turns."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Mapping

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
    systems: Mapping[str, System], rows: Iterable[Rows], warmup: int, steps: int
) -> tuple[dict[str, list[float]], list[Rows]]:
    """Trains all systems side by side: each step's examples go through every one of them.

    Each step starts with another system, so that none always follows the same one.

    Args:
        systems: by name.
        rows: what they are trained on.
        warmup: steps before the timed ones; the first compiles.
        steps: timed steps.

    Returns:
        Seconds of each timed step, by system, and the examples of these steps.
    """
    names, timed = list(systems), list(itertools.islice(rows, warmup + steps))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn, step in enumerate(tqdm.tqdm(timed, 'steps of every system')):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            systems[name].step(step)
            seconds[name].append(time.perf_counter() - start)
    return {name: each[warmup:] for name, each in seconds.items()}, timed[warmup:]
