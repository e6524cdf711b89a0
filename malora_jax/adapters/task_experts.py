"""Structure whose experts are weighted by the task of a token, instead of by a router.

Dimension letters: N tokens, D inputs, F outputs, E experts, R rank, T tasks, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from malora_jax.adapters import initializers, products
from malora_jax.adapters.base_structure import Axis, Leaves, require
from malora_jax.adapters.structures import HydraLoRA


@dataclasses.dataclass(frozen=True)
class TaskExperts(HydraLoRA):
    """MTL-LoRA (Yang et al. 2025, arXiv 2410.09437): experts that are weighted by the task.

    The update for a token of task t is Σ_i softmax(w_t / τ)_i B_i Λ_t A x. The tasks share the
    down-projection A and the up-projections B_i, which are the experts. Each task has a core Λ_t
    and the weights w_t. There is no router, and the update of each task is that of one LoRA.

    Attributes:
        tasks: Names of the tasks, in the order of their parameters. () as long as they are unknown;
            such a structure has no parameters.
        temperature: τ, by which the weights are divided before the softmax.
    """

    tasks: tuple[str, ...] = ()
    temperature: float = 1.0

    factors = ('shared_down', 'core', 'up')
    is_routed = False

    def __post_init__(self):
        super().__post_init__()
        require(self.temperature > 0, 'task_temperature', self.temperature, 'positive')
        is_distinct = len({*self.tasks}) == len(self.tasks)
        require(is_distinct, 'tasks', self.tasks, 'distinct names')

    def leaf_axes(self, inputs: Axis, outputs: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of A, the cores Λ_t, the B_i and the weights w_t, by name."""
        E, R, shared = self.expert_axis, self.rank_axis, Axis('shared_rank', self.rank)
        T = Axis('task', len(self.tasks))
        return {
            'shared_down': (inputs, shared),
            'core': (T, shared, R),
            'up': (E, R, outputs),
            'task_weights': (T, E),
        }

    def initialize(
        self, key: jax.Array, inputs: int, outputs: int, beta: float
    ) -> dict[str, jax.Array]:
        """Initialize A Kaiming-uniform, Λ_t as the identity, B_i with zeros, and w_t at random.

        As in the authors' code, w_t is uniform in ±1/√E. If it were constant, all B_i would get the
        same gradients and stay equal.

        Raises:
            UserError: The tasks are unknown.
        """
        require(len(self.tasks) > 0, 'tasks', self.tasks, 'the names of the tasks in the data')
        E, R, T = self.num_experts, self.rank, len(self.tasks)
        key, weights_key = jax.random.split(key)
        return {
            'shared_down': initializers.kaiming_uniform(key, (inputs, R)),
            'core': self._identities(),
            'up': jnp.zeros((E, R, outputs)),
            'task_weights': initializers.kaiming_uniform(weights_key, (E, T)).T,
        }

    def factors_from_lora(
        self, fresh: Leaves, down_DR: jax.Array, beta: float
    ) -> dict[str, jax.Array]:
        """Return the shared A, whose first rows are the trained LoRA's, and cores that keep A x."""
        return super().factors_from_lora(fresh, down_DR, beta) | {'core': self._identities()}

    def _identities(self) -> jax.Array:
        """Return an identity matrix for each task, (T, R, R)."""
        return jnp.tile(jnp.eye(self.rank)[None], (len(self.tasks), 1, 1))

    def of_tasks(
        self, projected_NR: jax.Array, leaves: Leaves, tasks_NT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the activations Λ_t A x and the gates softmax(w_t / τ), for the tokens' tasks.

        Args:
            projected_NR: (N, R), products A x.
            leaves: Parameters by name.
            tasks_NT: (N, T) float32, one-hot task of each token; zeros for padding, for which the
                results are zero.

        Returns:
            (N, R), activations, and (N, E) float32, gates.
        """
        # One product with the cores of all tasks; a token is zero in those of the other tasks.
        repeated_NP = jnp.tile(projected_NR, (1, len(self.tasks)))
        own_NP = products.gate(repeated_NP, tasks_NT)
        hidden_NR = products.sum_of_experts(own_NP, leaves['core'])
        shares_TE = jax.nn.softmax(leaves['task_weights'] / self.temperature)
        gates_NE = jnp.matmul(tasks_NT, shares_TE, precision=jax.lax.Precision.HIGHEST)
        return products.save_for_backward(hidden_NR, self.first_factor_axis), gates_NE

    def projections(self, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the LoRA of each task: A, and the up-projection Σ_i softmax(w_t / τ)_i B_i Λ_t.

        There is an up-projection for each task, (L, T, R, F), in place of each expert.
        """
        weights_LTE, up_LERF = leaves['task_weights'] / self.temperature, leaves['up']
        array_module = up_LERF.__array_namespace__()
        exponents_LTE = array_module.exp(weights_LTE - weights_LTE.max(axis=-1, keepdims=True))
        shares_LTE = exponents_LTE / exponents_LTE.sum(axis=-1, keepdims=True)
        mean_LTRF = array_module.einsum('lte,lerf->ltrf', shares_LTE, up_LERF)
        return leaves['shared_down'][:, None], leaves['core'] @ mean_LTRF
