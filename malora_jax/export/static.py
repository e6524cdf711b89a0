"""A plain LoRA in place of a routed mixture: each expert counts with its mean gate.

A routed update differs from token to token; its mean over tokens' gates does not. How much is lost
by that is measured on the held-out questions and told with the result.

Dimension letters: L layers, E experts, D inputs and F outputs of a linear, S rank of the subspace,
R rank of an expert, Q rank of the result.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from malora_jax.adapters import AdapterConfig, method
from malora_jax.adapters.structures import IndependentExperts
from malora_jax.errors import UserError, out_of_range, unknown_name
from malora_jax.export.merge import check_trained, linear_factors, part_of
from malora_jax.export.trained import Restored
from malora_jax.models import Decoder
from malora_jax.training.heldout import held_out_losses, loss_by_task
from malora_jax.training.setup import Setup

# Training examples of each task whose gates are averaged.
EXAMPLES = 128


class Static(NamedTuple):
    """A plain LoRA and what it stands for.

    Attributes:
        trained: it, as if it had been trained so.
        about: for its manifest: `approximates` (the method), `gates_of` (the tasks whose tokens
            were averaged over), `examples` (at most, of each of them), `exact_rank`, `rank`, and
            `lost_by_rank`: ‖ΔW − its truncation‖ / ‖ΔW‖ of the mean update, over all linears.
        losses: nats per token of the held-out answers of each task, by `base`, `mixture` and
            `static`.
    """

    trained: Restored
    about: dict[str, Any]
    losses: dict[str, dict[str, float]]


def static(setup: Setup, trained: Restored, task: str = '', rank: int = 0) -> Static:
    """The plain LoRA that comes nearest to a mixture's mean update.

    Args:
        setup: of the run that was trained.
        trained: a routed mixture.
        task: whose training examples' gates are averaged; '' = all tasks, each counting the same.
        rank: of the result, by a truncated singular value decomposition; 0 = the rank that holds
            the mean update exactly.

    Raises:
        UserError: the model is a plain LoRA or not trained, there is no such task, or a rank above
            the exact one.
    """
    adapter = trained.model.adapter
    if adapter is None or adapter.structure.is_mergeable:
        raise UserError(
            f'{trained.method} is one LoRA already and needs no approximation: use --format=peft, '
            'merged or adapter.'
        )
    check_trained(trained, 'static')
    tasks = [split.task_name for split in setup.splits if split.train]
    if task and task not in tasks:
        raise unknown_name('--task', task, tasks)
    chosen = [task] if task else tasks
    gates = _mean_gates(setup, trained, chosen)
    exact = {
        name: adapter.structure.mean_update(linear_factors(trained.variables, name), gates[name])
        for name in adapter.targets
    }
    exact_rank = max(down.shape[-1] for down, _ in exact.values())
    if not 0 <= rank <= exact_rank:
        raise out_of_range('--rank', rank, f'0 or at most {exact_rank}, which is exact')
    found = {name: truncated(*pair, rank) for name, pair in exact.items()} if rank else exact
    plain = _as_lora(trained, adapter, found)
    about = {
        'approximates': trained.method,
        'gates_of': chosen,
        'examples': EXAMPLES,
        'exact_rank': exact_rank,
        'rank': rank or exact_rank,
        'lost_by_rank': _lost(exact, found),
    }
    return Static(plain, about, _losses(setup, trained, plain))


def truncated(down_LDQ: np.ndarray, up_LQF: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the nearest product of that rank (Eckart and Young), each layer on its own.

    No matrix of the product's size is made: the factors are brought to triangles first.
    """
    q_LDQ, r_LQQ = np.linalg.qr(down_LDQ)
    p_LFQ, s_LQQ = np.linalg.qr(up_LQF.swapaxes(1, 2))
    u, sigma, vt = np.linalg.svd(r_LQQ @ s_LQQ.swapaxes(1, 2), full_matrices=False)
    root = np.sqrt(sigma[:, None, :rank])
    down = q_LDQ @ (u[:, :, :rank] * root)
    up = (vt[:, :rank] * root.swapaxes(1, 2)) @ p_LFQ.swapaxes(1, 2)
    # Zeros where a side of the linear is shorter than the rank.
    more = rank - down.shape[-1]
    return np.pad(down, [(0, 0), (0, 0), (0, more)]), np.pad(up, [(0, 0), (0, more), (0, 0)])


def _mean_gates(setup: Setup, trained: Restored, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """By linear, (L, E): mean over tokens of each task's examples, then over tasks."""
    adapter, config = trained.model.adapter, trained.model.config
    assert adapter is not None
    if not adapter.has_router:
        return dict.fromkeys(adapter.targets, np.ones((config.num_layers, 1)))
    names = [split.task_name for split in setup.splits]
    own = [names.index(task) for task in tasks]
    batches = list(setup.training_batches(tasks, EXAMPLES))
    bar = tqdm.tqdm(batches, desc='gates', unit='batch')
    sums = held_out_losses(trained.model, trained.variables, bar, len(names))
    gates = {}
    for path, routing in sums.routing.items():
        # Each token has top_k slots.
        tokens_LG1 = (
            np.asarray(routing.load)[:, own].sum(axis=-1, keepdims=True) / adapter.router.top_k
        )
        mean_LGE = np.asarray(routing.gate, np.float64)[:, own] / np.maximum(tokens_LG1, 1)
        gates[path.rsplit('/', 1)[-1]] = mean_LGE.mean(axis=1)
    return gates


def _as_lora(
    trained: Restored, adapter: AdapterConfig, found: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Restored:
    rank = next(iter(found.values()))[0].shape[-1]
    # The same factor of the update as before, α / rank.
    config = method(
        'lora',
        rank=rank,
        alpha=adapter.scale * rank,
        dropout=adapter.dropout,
        targets=adapter.targets,
    )
    down, up = IndependentExperts.factors
    layers: dict[str, dict[str, Any]] = {}
    for target, (down_LDQ, up_LQF) in found.items():
        layers.setdefault(part_of(target), {})[target] = {
            down: down_LDQ[:, None].astype(np.float32),
            up: up_LQF[:, None].astype(np.float32),
        }
    return trained._replace(
        model=Decoder(trained.model.config, config),
        variables={'params': trained.base.params, 'adapter': {'layers': layers}},
        method='lora',
    )


def _lost(
    exact: Mapping[str, tuple[np.ndarray, np.ndarray]],
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> float:
    """‖ΔW − ΔW'‖ / ‖ΔW‖ over all linears, ΔW' the best of a lower rank: norms suffice."""
    whole = sum(_square_norm(*pair) for pair in exact.values())
    kept = sum(_square_norm(*pair) for pair in found.values())
    return float(np.sqrt(max(0.0, 1 - kept / whole))) if whole else 0.0


def _square_norm(down_LDQ: np.ndarray, up_LQF: np.ndarray) -> float:
    """‖A B‖² = tr(AᵀA B Bᵀ), summed over layers."""
    down_LQQ = down_LDQ.swapaxes(1, 2) @ down_LDQ
    return float((down_LQQ * (up_LQF @ up_LQF.swapaxes(1, 2))).sum())


def _losses(setup: Setup, mixture: Restored, lora: Restored) -> dict[str, dict[str, float]]:
    base = Decoder(mixture.model.config)
    models = {
        'base': (base, {'params': mixture.base.params}),
        'mixture': (mixture.model, mixture.variables),
        'static': (lora.model, lora.variables),
    }
    names = [split.task_name for split in setup.splits]
    losses: dict[str, dict[str, float]] = {}
    for label, (model, variables) in models.items():
        batches = tqdm.tqdm(list(setup.held_out_batches()), desc=f'loss of {label}', unit='batch')
        sums = held_out_losses(model, variables, batches, len(names))
        for name, loss in zip(names, loss_by_task(sums), strict=True):
            if np.isfinite(loss):  # Of a task that has answers.
                losses.setdefault(name, {})[label] = float(loss)
    return losses
