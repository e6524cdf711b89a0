"""Top-k routing: settings, parameters and gates of a router.

Equation numbers and tables refer to the MALoRA paper.

Dimension letters: N tokens, D inputs, E experts, M logits of a router.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from malora_jax import errors
from malora_jax.adapters import initializers
from malora_jax.adapters.base_structure import Axis, require
from malora_jax.adapters.scores import SCORES, Scores, fill, shares
from malora_jax.adapters.top_k import ordered_top_k, top_k_mask

# Inputs of a router: 'x', the input of the linear layer, before dropout unless
# `RouterConfig.after_dropout`; or 'first', the input after dropout times the shared
# down-projection, such as S_A drop(x). `low_rank.project_input` computes the logits.
# `AdapterConfig` permits 'first' only if all experts share their down-projection.
INPUTS = ('x', 'first')
# Gates of the top-k experts: 'softmax', their scores, which are probabilities in the paper;
# 'renormalized', these scores scaled to sum to one; 'equal', 1/K each without a gradient, so that
# the router learns from the load-balancing loss alone, or from sampled selections
# (`RouterConfig.samples`).
GATES = ('softmax', 'renormalized', 'equal')
# Numbers with which the balancing bias compares the number of tokens of an expert: 'mean', the mean
# over the experts; or 'share', K / E, as in FlyLoRA's published code.
BIAS_TARGETS = ('mean', 'share')
# Scores by which the load-balancing loss multiplies the load: 'probability'; or 'distance', that of
# the probability from the threshold, as in AdaMoLE's published code.
BALANCE_SCORES = ('probability', 'distance')
# Names of a router's weight, and of the bias that balances the load without a gradient.
ROUTER = 'router'
BALANCE_BIAS = 'balance_bias'


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """Settings of a top-k router.

    Attributes:
        top_k: Number of active experts per token, K.
        input: Input of the router, one of `INPUTS`: 'x', the input of the linear layer; or
            'first', the down-projected input.
        gates: Kind of gates of the top-k experts, one of `GATES`: 'softmax', their scores;
            'renormalized', these scores scaled to sum to one; or 'equal', 1/K each.
        balance_weight: Coefficient of the load-balancing loss; 0.01 in the paper's tables.
        scores: Scores of the experts, a key of `scores.SCORES`: 'softmax' of the logits, as in the
            paper; 'absolute', the softmax of their absolute values; 'sigmoid' of each logit;
            'threshold', the softmax minus a trained threshold, for the experts that are above it;
            or 'magnitude', the absolute value of each entry of A x, for which the router has no
            weight.
        sum_to_k: Whether renormalized or equal gates are multiplied by K, so that they sum to K.
        bias_rate: Change of the balancing bias per step, u: see `load_balancing`. 0 for no bias.
        samples: Number of independent selections that a training step samples for each token; 0 if
            every token uses its top-k experts in training, too.
        bias_in_gates: Whether the balancing bias is part of the gates, not only of the choice.
        bias_target: Target of the balancing bias, one of `BIAS_TARGETS`.
        balance_scores: Scores in the load-balancing loss, one of `BALANCE_SCORES`.
        after_dropout: Whether the router reads the input after dropout, in training.

    Raises:
        UserError: A setting is unknown or out of range.
    """

    top_k: int = 1
    input: str = 'x'
    gates: str = 'softmax'
    balance_weight: float = 0.01
    scores: str = 'softmax'
    sum_to_k: bool = False
    bias_rate: float = 0.0
    samples: int = 0
    bias_in_gates: bool = False
    bias_target: str = 'mean'
    balance_scores: str = 'probability'
    after_dropout: bool = False

    def __post_init__(self):
        if self.scores not in SCORES:
            raise errors.unknown_name('adapter.scores', self.scores, SCORES)
        if self.input not in INPUTS:
            raise errors.unknown_name('adapter.router_input', self.input, INPUTS)
        if self.gates not in GATES:
            raise errors.unknown_name('router gates', self.gates, GATES)
        if self.top_k < 1:
            raise errors.out_of_range('adapter.top_k', self.top_k, 'at least 1')
        if self.gates == 'renormalized' and self.top_k == 1:
            raise errors.out_of_range(
                'adapter.renormalize',
                True,
                'False when top_k = 1: the only gate would always be 1, and the router would get '
                'no gradient',
            )
        if self.balance_weight < 0:
            raise errors.out_of_range('adapter.balance_weight', self.balance_weight, 'at least 0')
        if self.samples != 0 and self.samples < 2:
            raise errors.out_of_range(
                'adapter.samples',
                self.samples,
                '0, or at least 2: the router learns from differences between samples',
            )
        if self.scores not in ('softmax', 'absolute') and self.gates == 'softmax':
            raise errors.out_of_range(
                'adapter.renormalize',
                False,
                f'True with adapter.scores = {self.scores!r}, whose gates would have any sum '
                'otherwise; or use adapter.equal_gates',
            )
        if self.sum_to_k and self.gates == 'softmax':
            raise errors.out_of_range(
                'adapter.gates_sum_to_k', True, 'False without renormalize or equal_gates'
            )
        if self.bias_rate < 0:
            raise errors.out_of_range('adapter.bias_rate', self.bias_rate, 'at least 0')
        if self.bias_rate > 0 and self.scores == 'threshold':
            raise errors.out_of_range(
                'adapter.bias_rate',
                self.bias_rate,
                "0 with adapter.scores = 'threshold', which chooses no fixed number of experts",
            )
        self._check_published_forms()

    def _check_published_forms(self) -> None:
        if self.bias_target not in BIAS_TARGETS:
            raise errors.unknown_name('adapter.bias_target', self.bias_target, BIAS_TARGETS)
        if self.balance_scores not in BALANCE_SCORES:
            raise errors.unknown_name('adapter.balance_scores', self.balance_scores, BALANCE_SCORES)
        require(
            not self.bias_in_gates or (self.bias_rate > 0 and self.gates != 'equal'),
            'bias_in_gates',
            True,
            'False unless bias_rate > 0 and equal_gates is False',
        )
        require(
            self.bias_target == 'mean' or self.bias_rate > 0,
            'bias_target',
            self.bias_target,
            "'mean' unless bias_rate > 0",
        )
        require(
            self.balance_scores == 'probability'
            or (self.scores == 'threshold' and self.balance_weight > 0),
            'balance_scores',
            self.balance_scores,
            "'probability' unless scores is 'threshold' and balance_weight > 0",
        )
        require(
            not self.after_dropout or (self.input == 'x' and self.has_weight),
            'router_dropout',
            True,
            "False if router_input is 'first' or scores is 'magnitude': the router then reads the "
            'input after dropout anyway',
        )

    @property
    def has_weight(self) -> bool:
        """True if the router has a weight matrix, which multiplies its input."""
        return self.scores != 'magnitude'

    @property
    def has_offset(self) -> bool:
        """True if there is a bias, of the threshold or of the load."""
        return self.scores == 'threshold' or self.bias_rate > 0

    @property
    def min_experts(self) -> int:
        """Smallest number of experts that a token can be routed to."""
        return 1 if self.scores == 'threshold' else self.top_k

    @property
    def gate_factor(self) -> int:
        """Factor of the gates: K if they sum to K (`sum_to_k`), else 1."""
        return self.top_k if self.sum_to_k else 1

    def is_dense(self, num_experts: int) -> bool:
        """Return whether every token is routed to all experts.

        Args:
            num_experts: Number of experts of the layer, E.
        """
        return self.min_experts == num_experts

    def gate_sum(self, num_experts: int) -> int | None:
        """Return the sum of the gates of a token; None if it differs between tokens.

        Args:
            num_experts: Number of experts of the layer, E.
        """
        if self.gates == 'softmax' and self.top_k < num_experts:
            return None
        return self.gate_factor

    def axes(self, inputs: Axis, experts: Axis) -> dict[str, tuple[Axis, ...]]:
        """Return the axes of each parameter of the router, by name.

        Args:
            inputs: Axis of the router's input.
            experts: Axis of the experts, size E.
        """
        axes: dict[str, tuple[Axis, ...]] = {}
        if self.has_weight:
            axes[ROUTER] = (inputs, experts)
        if self.scores == 'threshold':
            axes |= {'threshold': (inputs, Axis('rank', 1)), 'threshold_bias': (Axis('rank', 1),)}
        if self.bias_rate > 0:
            axes[BALANCE_BIAS] = (experts,)
        return axes

    def initialize(self, key: jax.Array, inputs: int, num_experts: int) -> dict[str, jax.Array]:
        """Initialize the parameters of the router.

        The MALoRA paper does not specify the initialization of W_g. It is Kaiming-uniform here, the
        default of PyTorch's linear layers, and the threshold's weight and bias are, too.

        Args:
            key: Random key.
            inputs: Number of entries of the router's input, D.
            num_experts: Number of experts, E.

        Returns:
            Float32 arrays by name.
        """
        leaves = {}
        if self.has_weight:
            leaves[ROUTER] = initializers.kaiming_uniform(key, (inputs, num_experts))
        if self.scores == 'threshold':
            weight_key, bias_key = jax.random.split(jax.random.fold_in(key, 1))
            leaves['threshold'] = initializers.kaiming_uniform(weight_key, (inputs, 1))
            # The distribution of the bias is that of an entry of the weight.
            leaves['threshold_bias'] = initializers.kaiming_uniform(bias_key, (inputs, 1))[0]
        if self.bias_rate > 0:
            leaves[BALANCE_BIAS] = jnp.zeros(num_experts)
        return leaves

    def weight(self, leaves: Mapping[str, Any]) -> Any:
        """Return the matrix whose product with the router's input are the logits, (..., D, M).

        The columns are those of W_g, followed by the weight of the threshold, if there is one.

        Args:
            leaves: Parameters by name: NumPy or JAX arrays, with any leading axes.
        """
        if self.scores != 'threshold':
            return leaves[ROUTER]
        namespace = leaves[ROUTER].__array_namespace__()
        return namespace.concat([leaves[ROUTER], leaves['threshold']], axis=-1)

    def offset(self, leaves: Mapping[str, Any]) -> Any:
        """Return the bias of the threshold or the balancing bias for `route`, (..., M).

        Args:
            leaves: Parameters by name: NumPy or JAX arrays, with any leading axes.

        Returns:
            None if the router has neither of them.
        """
        if self.scores == 'threshold':
            namespace = leaves[ROUTER].__array_namespace__()
            zeros = namespace.zeros_like(leaves[ROUTER][..., 0, :])
            return namespace.concat([zeros, leaves['threshold_bias']], axis=-1)
        return leaves.get(BALANCE_BIAS)

    def route(
        self,
        logits_NM: jax.Array,
        offset_NM: jax.Array | None = None,
        num_experts: jax.Array | None = None,
    ) -> 'Routing':
        """Choose the experts of each token: in the paper, G(x) = TopK(Softmax(W_g x)), eq. (4).

        Args:
            logits_NM: (N, M) float32, products of the input with `weight`; or, without a weight,
                the activations A x.
            offset_NM: (N, M) or (1, M) float32, what `offset` returns.
            num_experts: () int32 number of experts of this layer, if layers have different
                numbers; the others get the probability 0.

        Returns:
            Gates, probabilities and selected experts of each token.
        """
        is_available_1E = self._is_available(logits_NM, num_experts)
        scores = SCORES[self.scores](logits_NM, offset_NM, is_available_1E)
        choice_NE = jax.lax.stop_gradient(fill(scores.choice, is_available_1E, -jnp.inf))
        selected_NE = fill(top_k_mask(choice_NE, self.top_k), is_available_1E, 0)
        if self.scores == 'threshold':
            selected_NE *= choice_NE >= 0
        return self._weigh(scores, selected_NE)

    def balance_distances(
        self, logits_NM: jax.Array, offset_NM: jax.Array | None, num_experts: jax.Array | None
    ) -> jax.Array | None:
        """Return the distances p - τ from the threshold that the load-balancing loss uses, (N, E).

        Args:
            logits_NM: Logits, as for `route`.
            offset_NM: Bias of the threshold, as for `route`.
            num_experts: Number of experts of this layer, as for `route`.

        Returns:
            None if the loss uses the probabilities.
        """
        if self.balance_scores == 'probability':
            return None
        is_available_1E = self._is_available(logits_NM, num_experts)
        return SCORES[self.scores](logits_NM, offset_NM, is_available_1E).choice

    def sample(
        self, key: jax.Array, logits_NE: jax.Array, num_experts: jax.Array | None = None
    ) -> tuple['Routing', jax.Array]:
        """Sample K experts of each token without replacement, with the router's probabilities.

        The K largest sums of a logit and Gumbel noise are such a sample (Kool et al. 2019, arXiv
        1903.06059).

        Args:
            key: Random key.
            logits_NE: (N, E) float32, logits W_g x.
            num_experts: () int32 number of experts of this layer, as for `route`.

        Returns:
            Gates, probabilities and selected experts of each token; and the logarithm of the
            probability of each token's selection, as `ordered_top_k` returns it.
        """
        is_available_1E = self._is_available(logits_NE, num_experts)
        scores = SCORES[self.scores](logits_NE, None, is_available_1E)
        logits_NE = fill(logits_NE, is_available_1E, -jnp.inf)
        noise_NE = jax.random.gumbel(key, logits_NE.shape, logits_NE.dtype)
        selected_NE, log_probability_N = ordered_top_k(logits_NE + noise_NE, logits_NE, self.top_k)
        return self._weigh(scores, selected_NE), log_probability_N

    def _is_available(
        self, logits_NM: jax.Array, num_experts: jax.Array | None
    ) -> jax.Array | None:
        if num_experts is None:
            return None
        E = logits_NM.shape[-1] - (self.scores == 'threshold')
        return jnp.arange(E)[None] < num_experts

    def _weigh(self, scores: Scores, selected_NE: jax.Array) -> 'Routing':
        """Return the decisions of a router, with the gates of the selected experts."""
        gates_NE = (scores.choice if self.bias_in_gates else scores.gate) * selected_NE
        if self.gates == 'renormalized':
            gates_NE = shares(gates_NE)
        if self.gates == 'equal':
            gates_NE = selected_NE / self.top_k
        return Routing(self.gate_factor * gates_NE, scores.probability, selected_NE)


class Routing(NamedTuple):
    """Decisions of a router for N tokens.

    Attributes:
        gates: (N, E) float32, weight of each expert; zero outside the top k.
        probabilities: (N, E) float32, softmax over all experts.
        selected: (N, E) float32, 1 for the top-k experts of each token, else 0; no gradient.
    """

    gates: jax.Array
    probabilities: jax.Array
    selected: jax.Array
