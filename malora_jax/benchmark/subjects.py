"""What is timed: the training step of each method, its parts, and the frozen model alone.

Dimension letters: B rows, T positions, N = B · T tokens, D model.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.models import Decoder
from malora_jax.models.decoder import head
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.objective import cross_entropy
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import flops_per_token, parameter_counts
from malora_jax.training.state import create_state
from malora_jax.training.step import Batch, losses, make_gradients, make_train_step

BASE = 'base'
# What is timed of each: the loss; loss and gradient; these and the update.
PARTS = ('forward', 'gradient', 'step')
# Of the learning rate's schedule, which a benchmark does not reach the end of.
_STEPS = 1000


@dataclasses.dataclass
class Subject:
    """Something to be timed.

    Attributes:
        name: of the method, or 'base'.
        run_part: runs one of `PARTS` on a batch, to its end.
        compile_s: seconds to compile the step, nothing cached.
        first_step_s: seconds of the first step after that.
        temporary_bytes: what the step allocates while it runs, by the compiler's account.
        resident_bytes: weights, state and batch, which stay allocated.
        flops_per_token: see `plan.flops_per_token`; the base's parts alone for the base.
        trained_parameters: how many.
    """

    name: str
    run_part: Callable[[str, Batch], None]
    compile_s: float
    first_step_s: float
    temporary_bytes: int
    resident_bytes: int
    flops_per_token: int
    trained_parameters: int


def method_subject(name: str, run: RunConfig, params: Any, batch: Batch, tasks: int) -> Subject:
    """A method's training step.

    Args:
        name: of the method.
        run: with that method's adapter.
        params: the frozen base.
        batch: one to compile for and to take the first step on.
        tasks: how many tasks the batches have.
    """
    model = Decoder(run.model, run.adapter, run.training.remat)
    optimizer = make_optimizer(run.optimizer, _STEPS)
    state = create_state(model, optimizer, run.seed, params)
    accumulate = run.training.accumulate
    hyperparameters = jax.device_put(Hyperparameters.of(run.seed, run.optimizer, run.adapter))

    def forward(state, params, batch, hyperparameters):
        key = jax.random.key(hyperparameters.seed)
        return losses(model, state.variables(params), batch, tasks, key, hyperparameters)

    schedule = learning_rate_schedule(run.optimizer, _STEPS)
    step = make_train_step(model, optimizer, schedule, tasks, accumulate)
    started = time.perf_counter()
    compiled = step.lower(state, params, batch, hyperparameters).compile()
    compile_s = time.perf_counter() - started
    parts = {
        'forward': jax.jit(forward),
        'gradient': jax.jit(make_gradients(model, tasks, accumulate)),
    }

    def run_part(part: str, batch: Batch) -> None:
        nonlocal state
        if part == 'step':
            state, metrics = compiled(state, params, batch, hyperparameters)
            jax.block_until_ready((state, metrics))
        else:
            jax.block_until_ready(parts[part](state, params, batch, hyperparameters))

    flops = flops_per_token(model, run.data.sequence_length, run.data.batch_size)
    return Subject(
        name,
        run_part,
        compile_s,
        seconds(run_part, 'step', batch),
        *_memory(compiled),
        flops['total'],
        parameter_counts(model)['trainable'],
    )


def base_subject(run: RunConfig, params: Any, batch: Batch) -> Subject:
    """The frozen model alone: its loss, and the gradient with respect to the embedding's output.

    What every method must compute; there is nothing to update, so the step is the gradient.

    Args:
        run: whose base it is.
        params: the frozen base.
        batch: one to compile for and to take the first step on.
    """
    loss = base_loss(run)

    def embedded(params, batch):
        return params['embedding'][batch['inputs'].reshape(-1)]

    def forward(params, batch):
        return loss(embedded(params, batch), params, batch)

    def gradient(params, batch):
        return jax.value_and_grad(loss)(embedded(params, batch), params, batch)

    started = time.perf_counter()
    compiled = jax.jit(gradient).lower(params, batch).compile()
    compile_s = time.perf_counter() - started
    parts: dict[str, Callable[..., Any]] = {
        'forward': jax.jit(forward),
        'gradient': compiled,
        'step': compiled,
    }

    def run_part(part: str, batch: Batch) -> None:
        jax.block_until_ready(parts[part](params, batch))

    flops = flops_per_token(Decoder(run.model), run.data.sequence_length, run.data.batch_size)
    first_step_s = seconds(run_part, 'step', batch)
    memory = _memory(compiled)
    return Subject(BASE, run_part, compile_s, first_step_s, *memory, flops['total'], 0)


def base_loss(run: RunConfig) -> Callable[[jax.Array, Any, Batch], jax.Array]:
    """The mean loss of the model without an adapter, as a function of the embedding's output.

    Returns:
        A function of the embedded tokens (N, D), params and batch.
    """

    def loss(embedded_ND: jax.Array, params: Any, batch: Batch) -> jax.Array:
        # Each token has a row of the embedding to itself.
        tokens_BT = jnp.arange(embedded_ND.shape[0]).reshape(batch['inputs'].shape)
        config = dataclasses.replace(run.model, vocab_size=embedded_ND.shape[0], tied=True)
        given = {name: leaf for name, leaf in params.items() if name != 'head'}
        hidden_BTD, _ = Decoder(config, None, run.training.remat).apply(
            {'params': given | {'embedding': embedded_ND}},
            tokens_BT,
            batch['positions'],
            batch['segment_ids'],
        )
        weights_N1 = (batch['loss_mask'] * (batch['segment_ids'] > 0)).reshape(-1, 1)
        nll_1 = cross_entropy(
            hidden_BTD.reshape(embedded_ND.shape),
            head(run.model, params),
            batch['targets'].reshape(-1),
            weights_N1,
        )
        return nll_1.sum() / weights_N1.sum()

    return loss


def seconds(run_part: Callable[[str, Batch], None], part: str, batch: Batch) -> float:
    """How long a part takes on a batch."""
    started = time.perf_counter()
    run_part(part, batch)
    return time.perf_counter() - started


def _memory(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes of temporaries, and of arguments, by the compiler's account."""
    found: Any = compiled.memory_analysis()
    return found.temp_size_in_bytes, found.argument_size_in_bytes
