"""Comparison of the losses and gradients of two systems, and interleaved timing of several."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping

import numpy as np

from experiments.peers.batches import PeerBatch
from experiments.peers.systems import System
from malora_jax.errors import UserError
from malora_jax.progress import track

# Tolerances for the rounding of float32 sums in another order; larger differences mean that the
# methods differ.
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# Rounding may route a token to another expert if two experts have nearly equal scores. Then the
# gradients of that linear module in that layer differ, the router's most. At most two of 180 may
# do so.
_MAX_REROUTED, _REROUTED_TOLERANCE = 2, 5e-2


@dataclasses.dataclass(frozen=True)
class SystemDifference:
    """Difference between two systems on the same batch.

    Attributes:
        loss: Absolute difference of the losses, in nats.
        gradient: Largest relative error ‖g − g'‖ / ‖g‖ over all leaves and layers, where g is our
            gradient and g' is the peer's. The modules in `choices` are not included.
        leaf: Name and layer of the leaf with this largest error.
        choices: Linear modules, with their layers, in which rounding made the two systems route a
            token to different experts.
    """

    loss: float
    gradient: float
    leaf: str
    choices: list[str]


def compare(ours: System, peer: System, batch: PeerBatch) -> SystemDifference:
    """Compare the losses and gradients of two systems with the same weights.

    Args:
        ours: Our system.
        peer: System to compare it with.
        batch: Batch of examples.

    Raises:
        UserError: The systems differ by more than the tolerances.
    """
    (our_loss, our_gradients), (loss, gradients) = ours.gradients(batch), peer.gradients(batch)
    errors: dict[str, dict[str, float]] = {}
    for path, leaf in our_gradients.items():
        linear, name = path.rsplit('/', 1)
        for layer, (g, h) in enumerate(zip(leaf, gradients[path], strict=True)):
            error = float(np.linalg.norm(g - h) / np.linalg.norm(g))
            errors.setdefault(f'{linear}, layer {layer}', {})[name] = error
    choices = _rerouted_linears(errors)
    rest = {
        f'{name} of {linear}': off
        for linear, leaves in errors.items()
        for name, off in leaves.items()
        if linear not in choices
    }
    worst = max(rest, key=lambda name: (math.isnan(rest[name]), rest[name]))
    found = SystemDifference(abs(our_loss - loss), rest[worst], worst, choices)
    if not (found.loss <= LOSS_TOLERANCE and found.gradient <= GRADIENT_TOLERANCE):
        raise UserError(
            'The systems do not compute the same, so they are not timed: the losses are '
            f'{our_loss:.6f} and {loss:.6f}, and the relative error of the gradient of {worst} is '
            f'{found.gradient:.1e}.'
        )
    return found


def _rerouted_linears(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the modules in which rounding has probably routed a token to another expert.

    In such a module, the gradients of the two systems differ, but not by much: the router's error
    exceeds `GRADIENT_TOLERANCE`, and no error exceeds `_REROUTED_TOLERANCE`. If there are more than
    `_MAX_REROUTED` such modules, rounding is not the cause, and the result is empty.

    Args:
        errors: Relative error of each gradient, by module and layer, then by leaf name.
    """
    found = [
        linear
        for linear, leaves in errors.items()
        if leaves.get('router', 0) > GRADIENT_TOLERANCE
        and max(leaves.values()) <= _REROUTED_TOLERANCE
    ]
    return found if len(found) <= _MAX_REROUTED else []


def time_interleaved(
    systems: Mapping[str, System], batches: Iterator[PeerBatch], turns: int, steps: int
) -> tuple[dict[str, list[float]], list[PeerBatch]]:
    """Train all systems, interleaved, on the same batches, and time their steps.

    A round has one turn for each system, in which the system makes several steps in a row. The
    first step is not timed, because it compiles, or regains memory that the other systems have used
    in the meantime. Each round starts with another system, so that no system is always the first.

    Args:
        systems: Systems by name.
        batches: Batches to train on.
        turns: Number of rounds.
        steps: Number of timed steps per turn.

    Returns:
        Seconds of each timed step, by system, and the batches of these steps.
    """
    names = list(systems)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    timed: list[PeerBatch] = []
    for turn in track(range(turns), 'turns of every system', 'turn'):
        warm_up_batch, *timed_batches = itertools.islice(batches, 1 + steps)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            systems[name].step(warm_up_batch)
            seconds[name] += [_time_step(systems[name], batch) for batch in timed_batches]
        timed += timed_batches
    return seconds, timed


def _time_step(system: System, batch: PeerBatch) -> float:
    start = time.perf_counter()
    system.step(batch)
    return time.perf_counter() - start
