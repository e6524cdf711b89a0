"""The training step, with gradient accumulation, and the losses and routing sums of a batch.

Dimension letters: B batch, T sequence, N = B · T tokens, G tasks, L layers, E experts, A
micro-batches of a step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from malora_jax.adapters import load_balancing, trees
from malora_jax.adapters.alignment import TaskMoments, alignment_loss
from malora_jax.adapters.load_balancing import mean_balance_loss, update_biases
from malora_jax.adapters.low_rank import RECORDED_COLLECTIONS
from malora_jax.adapters.similarity_loss import similarity_loss
from malora_jax.distributed import sharding
from malora_jax.models import Decoder
from malora_jax.models.decoder import output_head
from malora_jax.training import rloo
from malora_jax.training.accumulation import accumulate_gradients
from malora_jax.training.config import RunConfig
from malora_jax.training.hyperparameters import Hyperparameters
from malora_jax.training.objective import cross_entropy, token_cross_entropy
from malora_jax.training.optimizer import learning_rate_schedule, make_optimizer, with_schedule_step
from malora_jax.training.state import TrainState

Batch = Mapping[str, Any]
# A function from (state, params, batch, hyperparameters) to (state, metrics).
StepFunction = Callable[
    [TrainState, Any, Batch, Hyperparameters], tuple[TrainState, dict[str, jax.Array]]
]
BATCH_KEYS = ('inputs', 'targets', 'loss_mask', 'task_ids', 'segment_ids', 'positions')


class Losses(NamedTuple):
    """Sums over the tokens of a batch.

    Attributes:
        nll: (G,) float32, summed cross-entropy (negative log-likelihood) of each task, in nats.
        loss_tokens: (G,) float32, number of tokens of each task that carry loss.
        tokens: () float32, number of tokens that are not padding.
        alignment: () float32, alignment loss times the number of tokens; 0 without this loss.
        routing: Routing statistics by path of the adapted linear, with leaves of shape (L, G, E).
        router: () float32, loss of routers that sample experts, for its gradient with respect to
            them (`rloo.router_loss`); None without samples.
    """

    nll: jax.Array
    loss_tokens: jax.Array
    tokens: jax.Array
    alignment: jax.Array
    routing: dict[str, load_balancing.RoutingSums]
    router: jax.Array | None = None


def losses(
    model: Decoder,
    variables: Any,
    batch: Batch,
    num_tasks: int,
    dropout_key: jax.Array | None = None,
    hyperparameters: Hyperparameters | None = None,
) -> Losses:
    """Apply the model to a packed batch, and return sums of the loss and of the routing.

    If the routers sample experts in training, the sums are means over the samples, each of which
    has a dropout mask of its own.

    Args:
        model: Decoder, with or without an adapter.
        variables: Variable collections of the decoder.
        batch: `inputs`, `targets`, `loss_mask`, `task_ids`, `segment_ids` and `positions`, all of
            shape (B, T); segment 0 is padding.
        num_tasks: G, the number of tasks.
        dropout_key: Random key of the dropout masks and of the sampled experts; None for no
            dropout and the top-k experts.
        hyperparameters: Hyperparameters, of which the adapter's `scale` and `dropout` are used;
            None for the values in the model's config.
    """
    rngs, samples = {}, 0
    if dropout_key is not None:
        rngs['dropout'] = dropout_key
        samples = 0 if model.adapter is None else model.adapter.router.samples
        if samples:
            rngs['dropout'], rngs['selection'] = jax.random.split(dropout_key)
            batch = rloo.repeat_rows(batch, samples)
    segments_BT = batch['segment_ids']
    task_BTG = jax.nn.one_hot(batch['task_ids'], num_tasks, dtype=jnp.float32)
    groups_NG = (task_BTG * (segments_BT > 0)[..., None]).reshape(-1, num_tasks)
    (hidden_BTD, _), collections = model.apply(
        variables,
        batch['inputs'],
        batch['positions'],
        segments_BT,
        groups_NG,
        train=dropout_key is not None,
        scale=None if hyperparameters is None else hyperparameters.scale,
        dropout=None if hyperparameters is None else hyperparameters.dropout,
        rngs=rngs,
        mutable=RECORDED_COLLECTIONS,
    )
    weights_NG = groups_NG * batch['loss_mask'].reshape(-1, 1)
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    head_VD = output_head(model.config, variables['params'])
    targets_N = batch['targets'].reshape(-1)
    tokens = groups_NG.sum()
    aligned = tokens * _mean_alignment_loss(collections.get('alignment', {}))
    routing = routing_by_path(collections.get('routing', {}))
    if not samples:
        nll_G = cross_entropy(hidden_ND, head_VD, targets_N, weights_NG)
        return Losses(nll_G, weights_NG.sum(axis=0), tokens, aligned, routing)
    nll_N = token_cross_entropy(hidden_ND, head_VD, targets_N, weights_NG.sum(axis=1))
    router = rloo.router_loss(nll_N, collections['selection'], segments_BT, samples)
    nll_G = jnp.matmul(nll_N, groups_NG, precision=jax.lax.Precision.HIGHEST)
    sums = Losses(nll_G, weights_NG.sum(axis=0), tokens, aligned, routing, router)
    return jax.tree.map(lambda values: values / samples, sums)


def _mean_alignment_loss(collection: Any) -> jax.Array:
    """Return the alignment loss, averaged over all adapted linears; 0 without moments."""
    moments = jax.tree.leaves(collection, is_leaf=lambda node: isinstance(node, TaskMoments))
    each = [alignment_loss(linear) for linear in moments]
    return jnp.stack(each).mean() if each else jnp.float32(0)


def _norms_by_parameter(gradients: Any) -> dict[str, jax.Array]:
    """Return the norm of the gradient of each parameter in all layers, such as all of `up`."""
    return {
        f'gradient_norm/{name}': optax.tree.norm(leaves)
        for name, leaves in trees.leaves_by_name(gradients).items()
    }


def make_train_step(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_tasks: int,
    accumulate: int = 1,
    shardings: Any = None,
    skip_nonfinite: bool = False,
    is_joint: bool = False,
) -> jax.stages.Wrapped:
    """Return `step_function` wrapped in `jax.jit`, with the buffers of the state donated.

    Args:
        model: Decoder with the adapter.
        optimizer: Optimizer of the adapter; its `update` gets the hyperparameters.
        schedule: Learning rate schedule as a fraction of the peak, for the metrics.
        num_tasks: G, the number of tasks.
        accumulate: A, the number of micro-batches for gradient accumulation.
        shardings: Shardings of the new state; None to let the compiler choose them.
        skip_nonfinite: Whether to skip the update if the loss or the gradient is not finite.
        is_joint: Whether one step trains several runs with a single copy of the base model. The
            leaves of the states, batches and hyperparameters then have a leading axis of runs.
    """
    train_step = step_function(model, optimizer, schedule, num_tasks, accumulate, skip_nonfinite)
    if is_joint:
        train_step = jax.vmap(train_step, in_axes=(0, None, 0, 0))

    def with_whole_metrics(
        state: TrainState, params: Any, batch: Batch, hyperparameters: Hyperparameters
    ):
        state, metrics = train_step(state, params, batch, hyperparameters)
        return state, sharding.replicate(metrics)

    return jax.jit(with_whole_metrics, donate_argnums=0, out_shardings=(shardings, None))


def step_function(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_tasks: int,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
) -> StepFunction:
    """Return the training step: (state, params, batch, hyperparameters) to (state, metrics).

    Only the adapter is differentiated. Dropout masks and sampled experts depend on the seed, the
    number of the step and the micro-batch, so a resumed run samples the same ones.

    Args:
        model: Decoder with the adapter.
        optimizer: Optimizer of the adapter; its `update` gets the hyperparameters.
        schedule: Learning rate schedule as a fraction of the peak, for the metrics.
        num_tasks: G, the number of tasks.
        accumulate: A, the number of micro-batches for gradient accumulation; a batch has A · B
            rows. The loss is the mean over all tokens of the step that carry loss, the same as for
            one large batch. The load-balancing and alignment losses are computed for each
            micro-batch, then averaged in proportion to the number of tokens of the micro-batches.
        skip_nonfinite: Whether to skip the update if the loss or the gradient is not finite. A
            skipped step changes neither the adapter nor Adam's moments, and its metric `skipped` is
            1. It still counts as a step, so the learning rate schedule continues.
    """
    config = model.adapter
    gradients_of = make_gradient_function(model, num_tasks, accumulate)
    update = optax.with_extra_args_support(optimizer).update

    def train_step(
        state: TrainState, params: Any, batch: Batch, hyperparameters: Hyperparameters
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, (loss, balance, sums) = gradients_of(state, params, batch, hyperparameters)
        updates, opt_state = update(
            gradients, state.opt_state, state.adapter, hyperparameters=hyperparameters
        )
        metrics = {
            'loss': loss,
            'task_nll': sums.nll,
            'task_tokens': sums.loss_tokens,
            'tokens': sums.tokens,
            'gradient_norm': optax.tree.norm(gradients),
            **_norms_by_parameter(gradients),
            'learning_rate': hyperparameters.learning_rate * schedule(state.step),
            'balance_loss': balance,
            'examples': _example_counts(batch, num_tasks),
        }
        if config is not None and config.alignment_weight > 0:
            metrics['alignment_loss'] = sums.alignment / jnp.maximum(sums.tokens, 1)
        if config is not None and config.similarity_weight > 0:
            metrics['similarity_loss'] = similarity_loss(config, state.adapter)
        if sums.routing:
            metrics |= load_balancing.routing_metrics(sums.routing)
        adapter_frozen = state.adapter_frozen
        if config is not None and config.router.bias_rate > 0:
            adapter_frozen = update_biases(config, adapter_frozen, sums.routing)
        new = state.replace(
            step=state.step + 1,
            adapter_frozen=adapter_frozen,
            adapter=optax.apply_updates(state.adapter, updates),
            opt_state=opt_state,
        )
        if skip_nonfinite:
            finite = jnp.isfinite(loss) & jnp.isfinite(metrics['gradient_norm'])
            metrics['skipped'] = (~finite).astype(jnp.int32)
            kept = jax.tree.map(lambda now, then: jnp.where(finite, now, then), new, state)
            new = kept.replace(
                step=new.step, opt_state=with_schedule_step(kept.opt_state, new.step)
            )
        return new, metrics

    return train_step


def lower_train_step(
    run: RunConfig,
    steps: int,
    num_tasks: int,
    state: TrainState,
    params: Any,
    hyperparameters: Hyperparameters,
) -> jax.stages.Lowered:
    """Lower the training step of a run, or the joint step of several runs, for compilation.

    Args:
        run: Config of the run.
        steps: Number of optimizer steps of the whole run.
        num_tasks: G, the number of tasks.
        state: Training state, as arrays or as shapes with shardings. The new state gets the same
            shardings.
        params: Parameters of the base model, as arrays or shapes.
        hyperparameters: Any hyperparameters of the right shape; their values do not matter. With a
            leading axis of runs, the step is joint, and the leaves of the state need this axis too.
    """
    runs = jnp.shape(hyperparameters.seed)
    train_step = make_train_step(
        Decoder(run.model, run.adapter, run.training.remat, run.attention),
        make_optimizer(run.optimizer, steps),
        learning_rate_schedule(run.optimizer, steps),
        num_tasks,
        run.training.accumulate,
        jax.tree.map(lambda leaf: leaf.sharding, state),
        run.training.skip_nonfinite > 0,
        is_joint=bool(runs),
    )
    rows = run.data.batch_size * run.training.accumulate
    batch = abstract_batch(rows, run.data.sequence_length)
    if runs:
        batch = {
            name: jax.ShapeDtypeStruct((*runs, *shape.shape), shape.dtype)
            for name, shape in batch.items()
        }
    return train_step.lower(state, params, batch, hyperparameters)


def compiled_memory_bytes(compiled: Any) -> int:
    """Return the device memory of a step in bytes, from the compiler's memory analysis.

    It includes the base model, the states and the batch.

    Args:
        compiled: Compiled training step.
    """
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def make_gradient_function(
    model: Decoder, num_tasks: int, accumulate: int = 1
) -> Callable[
    [TrainState, Any, Batch, Hyperparameters], tuple[Any, tuple[jax.Array, jax.Array, Losses]]
]:
    """Return the part of the training step that computes the gradient of the adapter.

    The objective includes the load-balancing loss only if the model has routers and its config has
    a positive balance weight, and the alignment and similarity losses only if their weights are
    positive. If routers sample experts, their gradient is the estimate of `rloo`.

    Args:
        model: Decoder with the adapter.
        num_tasks: G, the number of tasks.
        accumulate: A, the number of micro-batches for gradient accumulation.

    Returns:
        A function of state, params, batch and hyperparameters. It returns the gradient with respect
        to the adapter, and a tuple of the loss, the load-balancing loss and the `Losses` from which
        these are computed.
    """
    config = model.adapter
    is_balanced = config is not None and config.has_router and config.router.balance_weight > 0

    def gradients_of(
        state: TrainState, params: Any, batch: Batch, hyperparameters: Hyperparameters
    ) -> tuple[Any, Any]:
        real_BT = batch['segment_ids'] > 0
        tokens = jnp.maximum(real_BT.sum(), 1)
        loss_tokens = jnp.maximum((batch['loss_mask'] * real_BT).sum(), 1)

        def objective(adapter: Any, micro_batch: Batch, key: jax.Array):
            variables = state.replace(adapter=adapter).variables(params)
            sums = losses(model, variables, micro_batch, num_tasks, key, hyperparameters)
            loss = sums.nll.sum() / loss_tokens
            balance = mean_balance_loss(sums.routing, config)
            if accumulate > 1:
                balance *= sums.tokens / tokens
            total = loss + hyperparameters.balance_weight * balance if is_balanced else loss
            if config is not None and config.alignment_weight > 0:
                total += config.alignment_weight * sums.alignment / tokens
            if sums.router is not None:
                total += sums.router / loss_tokens
            return total, (loss, balance, sums)

        key = jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step)
        keys = key[None] if accumulate == 1 else jax.random.split(key, accumulate)
        gradients, auxiliary = accumulate_gradients(objective, state.adapter, batch, keys)
        if config is not None and config.similarity_weight > 0:
            # This loss depends only on the parameters, so it counts once for all micro-batches.
            added = jax.grad(similarity_loss, argnums=1)(config, state.adapter)
            weight = config.similarity_weight
            gradients = jax.tree.map(lambda own, other: own + weight * other, gradients, added)
        return gradients, auxiliary

    return gradients_of


def abstract_batch(batch_size: int, sequence_length: int) -> Batch:
    """Return the shapes of a packed batch for ahead-of-time compilation.

    Args:
        batch_size: Number of rows, including those of all micro-batches.
        sequence_length: T, the tokens of a row.

    Returns:
        Shapes (rows, T) by key, sharded over the mesh if one is set.
    """
    dtypes = dict.fromkeys(BATCH_KEYS, jnp.int32) | {'loss_mask': jnp.float32}
    shape, where = (batch_size, sequence_length), sharding.batch_sharding()
    return {
        key: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for key, dtype in dtypes.items()
    }


def _example_counts(batch: Batch, num_tasks: int) -> jax.Array:
    """Return the number of examples of each task that begin in a batch, (G,) int32."""
    begins_BT = (batch['positions'] == 0) & (batch['segment_ids'] > 0)
    task_BTG = jax.nn.one_hot(batch['task_ids'], num_tasks, dtype=jnp.int32)
    return (task_BTG * begins_BT[..., None]).sum(axis=(0, 1))


def routing_by_path(routing: Any) -> dict[str, load_balancing.RoutingSums]:
    """Return the routing statistics of each adapted linear.

    Args:
        routing: Flax collection `routing`, into which the adapted linears sow their statistics.

    Returns:
        Routing statistics by path of the linear, such as 'layers/attention/q'.
    """
    kinds = load_balancing.RoutingSums | load_balancing.DistanceSums
    leaves = jax.tree_util.tree_leaves_with_path(
        routing, is_leaf=lambda node: isinstance(node, kinds)
    )
    return {'/'.join(key.key for key in path[:-1]): sums for path, sums in leaves}
