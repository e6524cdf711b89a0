"""Training steps that a benchmark times: the step of each method, and of the base model alone.

Dimension letters: B rows, T positions, N = B · T tokens, D model width.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.models import Decoder
from malora_jax.models.decoder import output_head
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.objective import cross_entropy
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from malora_jax.training.plan import count_model_parameters, flops_per_token
from malora_jax.training.state import create_state
from malora_jax.training.step import Batch, losses, make_gradient_function, make_train_step

BASE = 'base'
# Timed parts of a step, each including the previous ones: loss, gradient, optimizer update.
PARTS = ('forward', 'gradient', 'step')
# Number of steps of the learning rate schedule. It does not affect the time of a step.
_SCHEDULE_STEPS = 1000


@dataclasses.dataclass
class TimedStep:
    """Compiled training step of a method, or of the base model alone, with its costs.

    Attributes:
        name: Name of the method, or 'base'.
        run_part: Function that runs a part of the step on a batch and waits until the device has
            finished. Its arguments are the name of the part, one of `PARTS`, and the batch.
        compile_s: Seconds to compile the step, without a compilation cache.
        first_step_s: Seconds of the first step after compilation.
        temporary_bytes: Bytes that the step allocates while it runs, from the compiler's analysis.
        resident_bytes: Bytes that stay allocated: weights, state and batch.
        flops_per_token: Floating-point operations per token, from `plan.flops_per_token`.
        trained_parameters: Number of trainable parameters; 0 for the base model.
    """

    name: str
    run_part: Callable[[str, Batch], None]
    compile_s: float
    first_step_s: float
    temporary_bytes: int
    resident_bytes: int
    flops_per_token: int
    trained_parameters: int


def compile_method_step(
    name: str, run: RunConfig, params: Any, batch: Batch, tasks: int
) -> TimedStep:
    """Compile the training step of a method, and run its first step.

    Args:
        name: Name of the method.
        run: Config with the adapter of that method.
        params: Parameters of the frozen base model.
        batch: Batch on which the first step is run. The step is compiled for its shapes.
        tasks: Number of tasks in the batches.
    """
    model = Decoder(run.model, run.adapter, run.training.remat, run.attention)
    optimizer = make_optimizer(run.optimizer, _SCHEDULE_STEPS)
    state = create_state(model, optimizer, run.seed, params)
    accumulate = run.training.accumulate
    hyperparameters = jax.device_put(
        Hyperparameters.from_configs(run.seed, run.optimizer, run.adapter)
    )

    def forward(state, params, batch, hyperparameters):
        key = jax.random.key(hyperparameters.seed)
        return losses(model, state.variables(params), batch, tasks, key, hyperparameters)

    schedule = learning_rate_schedule(run.optimizer, _SCHEDULE_STEPS)
    step = make_train_step(model, optimizer, schedule, tasks, accumulate)
    started = time.perf_counter()
    compiled = step.lower(state, params, batch, hyperparameters).compile()
    compile_s = time.perf_counter() - started
    parts = {
        'forward': jax.jit(forward),
        'gradient': jax.jit(make_gradient_function(model, tasks, accumulate)),
    }

    def run_part(part: str, batch: Batch) -> None:
        nonlocal state
        if part == 'step':
            state, metrics = compiled(state, params, batch, hyperparameters)
            jax.block_until_ready((state, metrics))
        else:
            jax.block_until_ready(parts[part](state, params, batch, hyperparameters))

    flops = flops_per_token(model, run.data.sequence_length, run.data.batch_size)
    return TimedStep(
        name,
        run_part,
        compile_s,
        time_part(run_part, 'step', batch),
        *_memory(compiled),
        flops['total'],
        count_model_parameters(model)['trainable'],
    )


def compile_base_step(run: RunConfig, params: Any, batch: Batch) -> TimedStep:
    """Compile the loss of the frozen base model and its gradient, and run the gradient once.

    The gradient is computed with respect to the output of the embedding. This is the work that
    every method must do. There is nothing to update, so the step is only the gradient.

    Args:
        run: Config of the base model.
        params: Parameters of the frozen base model.
        batch: Batch on which the first step is run. The step is compiled for its shapes.
    """
    loss = base_loss(run)

    def embed(params, batch):
        return params['embedding'][batch['inputs'].reshape(-1)]

    def forward(params, batch):
        return loss(embed(params, batch), params, batch)

    def gradient(params, batch):
        return jax.value_and_grad(loss)(embed(params, batch), params, batch)

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
    first_step_s = time_part(run_part, 'step', batch)
    memory = _memory(compiled)
    return TimedStep(BASE, run_part, compile_s, first_step_s, *memory, flops['total'], 0)


def base_loss(run: RunConfig) -> Callable[[jax.Array, Any, Batch], jax.Array]:
    """Return the loss of the base model as a function of the output of its embedding.

    Args:
        run: Config of the base model.

    Returns:
        A function of the embedded tokens (N, D), the parameters and a batch. It returns the mean
        cross-entropy in nats, (), over the tokens that contribute to the loss.
    """

    def loss(embedded_ND: jax.Array, params: Any, batch: Batch) -> jax.Array:
        # Use the embedded tokens as the embedding matrix, with one row per token of the batch.
        tokens_BT = jnp.arange(embedded_ND.shape[0]).reshape(batch['inputs'].shape)
        config = dataclasses.replace(run.model, vocab_size=embedded_ND.shape[0], tied=True)
        other_params = {name: leaf for name, leaf in params.items() if name != 'head'}
        hidden_BTD, _ = Decoder(config, None, run.training.remat, run.attention).apply(
            {'params': other_params | {'embedding': embedded_ND}},
            tokens_BT,
            batch['positions'],
            batch['segment_ids'],
        )
        weights_N1 = (batch['loss_mask'] * (batch['segment_ids'] > 0)).reshape(-1, 1)
        nll_1 = cross_entropy(
            hidden_BTD.reshape(embedded_ND.shape),
            output_head(run.model, params),
            batch['targets'].reshape(-1),
            weights_N1,
        )
        return nll_1.sum() / weights_N1.sum()

    return loss


def time_part(run_part: Callable[[str, Batch], None], part: str, batch: Batch) -> float:
    """Return the seconds that a part of a training step takes on a batch.

    Args:
        run_part: Function that runs the part, `TimedStep.run_part`.
        part: Name of the part, one of `PARTS`.
        batch: Batch on which the part is run.
    """
    started = time.perf_counter()
    run_part(part, batch)
    return time.perf_counter() - started


def _memory(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Return the bytes of temporary buffers and of arguments, from the compiler's analysis."""
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes, analysis.argument_size_in_bytes
