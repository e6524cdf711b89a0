"""Static export of a routed mixture as a plain LoRA.

The held-out losses of the mixture and of the LoRA show how much the approximation costs.

Dimension letters: L layers, G tasks, E experts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from malora_jax.errors import unknown_name
from malora_jax.export.mixture import check_mixture
from malora_jax.export.static import static_lora
from malora_jax.export.trained_model import TrainedModel
from malora_jax.models import Decoder
from malora_jax.progress import track
from malora_jax.training.held_out_loss import held_out_losses, loss_by_task
from malora_jax.training.setup import Setup

# Maximum number of training examples per task over whose tokens gates are averaged.
EXAMPLES = 128


class StaticExport(NamedTuple):
    """A plain LoRA that approximates a mixture of experts.

    Attributes:
        trained: The LoRA, in the form of a trained model that can be exported.
        manifest_entries: Entries for the manifest of the exported LoRA. `gates_of` has the names of
            the tasks whose gates were averaged. `examples` is the maximum number of training
            examples per task. The other entries come from `export.static.static_lora`.
        losses: Loss on the held-out answers in nats per token, by task, then by model: `base`,
            `mixture` and `static` (the LoRA).
    """

    trained: TrainedModel
    manifest_entries: dict[str, Any]
    losses: dict[str, dict[str, float]]


def static_export(
    setup: Setup, trained: TrainedModel, task: str = '', rank: int = 0
) -> StaticExport:
    """Approximate a mixture of experts by a plain LoRA, and measure the held-out loss of both.

    The gates of the mixture differ from token to token. The LoRA replaces each gate by its mean
    over tokens. It therefore adds one update to the weights, the mean update, for all tokens.

    Args:
        setup: Config, models and data of the trained run.
        trained: Routed mixture to approximate.
        task: Task on whose training examples the gates are averaged; '' for all tasks, with equal
            weight.
        rank: Rank of the LoRA. A low rank only approximates the mean update. 0 for the rank that
            represents it exactly.

    Raises:
        UserError: There is no such task, or `export.static.static_lora` refuses the mixture or the
            rank.
    """
    check_mixture(trained, 'static')
    tasks = [split.task_name for split in setup.splits if split.train]
    if task and task not in tasks:
        raise unknown_name('--task', task, tasks)
    chosen = [task] if task else tasks
    lora, manifest_entries = static_lora(trained, _mean_gates(setup, trained, chosen), rank)
    manifest_entries |= {'gates_of': chosen, 'examples': EXAMPLES}
    return StaticExport(lora, manifest_entries, _losses(setup, trained, lora))


def _mean_gates(setup: Setup, trained: TrainedModel, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the mean gate of each expert, (L, E), for each linear module.

    Gates are first averaged over the tokens of each task. The means of the tasks are then averaged,
    so that all tasks have the same weight.
    """
    adapter, config = trained.model.adapter, trained.model.config
    assert adapter is not None
    if not adapter.has_router:
        return dict.fromkeys(adapter.targets, np.ones((config.num_layers, 1)))
    names = [split.task_name for split in setup.splits]
    own = [names.index(task) for task in tasks]
    batches = list(setup.training_batches(tasks, EXAMPLES))
    tracked = track(batches, 'gates', 'batch')
    sums = held_out_losses(trained.model, trained.variables, tracked, len(names))
    gates = {}
    for path, routing in sums.routing.items():
        # The probabilities of a token sum to one.
        tokens_LG1 = np.asarray(routing.probability)[:, own].sum(axis=-1, keepdims=True)
        mean_LGE = np.asarray(routing.gate, np.float64)[:, own] / np.maximum(tokens_LG1, 1)
        gates[path.rsplit('/', 1)[-1]] = mean_LGE.mean(axis=1)
    return gates


def _losses(setup: Setup, mixture: TrainedModel, lora: TrainedModel) -> dict[str, dict[str, float]]:
    base = Decoder(mixture.model.config, attention=mixture.model.attention)
    models = {
        'base': (base, {'params': mixture.base.params}),
        'mixture': (mixture.model, mixture.variables),
        'static': (lora.model, lora.variables),
    }
    names = [split.task_name for split in setup.splits]
    losses: dict[str, dict[str, float]] = {}
    for label, (model, variables) in models.items():
        batches = list(setup.held_out_batches())
        tracked = track(batches, f'loss of {label}', 'batch')
        sums = held_out_losses(model, variables, tracked, len(names))
        for name, loss in zip(names, loss_by_task(sums), strict=True):
            if np.isfinite(loss):  # The loss of a task without answers is nan.
                losses.setdefault(name, {})[label] = float(loss)
    return losses
