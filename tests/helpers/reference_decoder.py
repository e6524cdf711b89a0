"""Reference decoder and training loss in float64 numpy, written from the equations.

It shares only the names of parameters and settings with the library, and no code. Rows are packed:
a token attends to itself and earlier tokens of its segment. Segment 0 is padding.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from malora_jax.adapters import AdapterConfig
from malora_jax.adapters.routers import RouterConfig
from malora_jax.adapters.settings import replace_settings, settings_of
from malora_jax.models import ModelConfig
from tests.helpers import reference


@dataclasses.dataclass
class ReferenceOutputs:
    """Outputs of the decoder, and intermediate values by path of the linear ('layers/1/mlp/up').

    Attributes:
        hidden: (B, T, D), hidden states after the final norm.
        logits: (B, T, V), logits.
        inputs: (N, D), inputs of each adapted linear, in the order of tokens.
        routings: Routing of each token, for each adapted linear that has a router.
        routers: (D, E), weights of the routers.
        projected: (N, R), products of the inputs with the down-projection of a single expert.
        norms: (F,), column norms of each adapted weight, by which DoRA divides.
        similarities: Similarity loss of each adapted linear; empty without its weight.
    """

    hidden: np.ndarray
    logits: np.ndarray
    inputs: dict[str, np.ndarray]
    routings: dict[str, list[reference.TokenRouting]]
    routers: dict[str, np.ndarray]
    projected: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    similarities: dict[str, float]


class ReferenceLosses(NamedTuple):
    """Losses of a packed batch.

    Attributes:
        nll: Mean cross-entropy of the tokens with loss, in nats.
        balance: Mean load-balancing loss of the routers; 0 if there are none.
        alignment: Mean alignment loss of the adapted linears; 0 without its weight.
        similarity: Similarity loss, the sum over the adapted linears; 0 without its weight.
        total: Training loss, `nll` plus the weighted `balance`, `alignment` and `similarity`.
        outputs: Outputs of the decoder.
    """

    nll: float
    balance: float
    alignment: float
    similarity: float
    total: float
    outputs: ReferenceOutputs


def to_float64(tree: Any) -> Any:
    """Convert the arrays of nested dictionaries to float64."""
    if isinstance(tree, dict):
        return {key: to_float64(value) for key, value in tree.items()}
    return np.asarray(tree, np.float64)


def merge_trees(*trees: Any) -> Any:
    """Merge trees into one: a linear's leaves may be spread over three collections."""
    tree: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in trees for key in each):
        found = [each[key] for each in trees if key in each]
        tree[key] = merge_trees(*found) if isinstance(found[0], dict) else found[0]
    return tree


class ReferenceDecoder:
    """Reference decoder with or without an adapter.

    Args:
        config: Base model configuration.
        variables: Variable collections, as the library's decoder takes them.
        adapter: Adapter configuration; None = base model.
        fixed_norms: Fixed column norms of the adapted weights by path; the others are computed.
            DoRA's gradient holds them fixed.
        orders: Sampled experts (N, K) of the tokens by path; without them, the top K.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: dict[str, Any],
        adapter: AdapterConfig | None = None,
        fixed_norms: dict[str, np.ndarray] | None = None,
        orders: dict[str, np.ndarray] | None = None,
    ):
        self.config, self.adapter = config, adapter
        self.weights = merge_trees(*(to_float64(tree) for tree in variables.values()))
        self.fixed_norms, self.orders = fixed_norms or {}, orders or {}

    def __call__(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        segments: np.ndarray,
        tasks: np.ndarray | None = None,
    ) -> ReferenceOutputs:
        """Run the decoder on packed rows; all arguments are (B, T), and all tasks 0 by default."""
        tasks = np.zeros_like(tokens) if tasks is None else tasks
        self.tasks = np.where(segments > 0, tasks, -1).reshape(-1)
        self.inputs, self.routings, self.routers = {}, {}, {}
        self.projected, self.norms, self.similarities = {}, {}, {}
        weights, shape = self.weights, tokens.shape
        x = weights['embedding'][tokens.reshape(-1)]
        for i in range(self.config.num_layers):
            block = _layer(weights['layers'], i)
            h = self._rms_norm(x, block['attention_norm']['scale'])
            x = x + self._attention(h, block['attention'], i, positions, segments)
            h = self._rms_norm(x, block['mlp_norm']['scale'])
            x = x + self._mlp(h, block['mlp'], i)
        x = self._rms_norm(x, weights['final_norm']['scale'])
        head = weights['embedding' if self.config.tied else 'head']
        logits = (x @ head.T).reshape(*shape, -1)
        x = x.reshape(*shape, -1)
        return ReferenceOutputs(
            *(x, logits, self.inputs, self.routings, self.routers),
            *(self.projected, self.norms, self.similarities),
        )

    def loss(self, batch: dict[str, np.ndarray]) -> ReferenceLosses:
        """Return the losses of packed rows; padding does not count in the load-balancing loss."""
        arrays = (batch[key] for key in ('inputs', 'positions', 'segment_ids', 'task_ids'))
        outputs = self(*arrays)
        nll = token_nll(outputs, batch).sum() / batch['loss_mask'].sum()
        adapter, balance = self.adapter, 0.0
        real = batch['segment_ids'].reshape(-1) > 0
        if adapter is not None and adapter.has_router:
            each = [
                _balance(list(itertools.compress(routings, real)), adapter)
                for routings in outputs.routings.values()
            ]
            balance = sum(each) / len(each)
        if adapter is None:
            return ReferenceLosses(nll, 0.0, 0.0, 0.0, nll, outputs)
        alignment = 0.0
        if adapter.alignment_weight:
            tasks = batch['task_ids'].reshape(-1)[real]
            projected = outputs.projected.values()
            each = [reference.alignment_loss(z[real], tasks) for z in projected]
            alignment = sum(each) / len(each)
        total = nll + adapter.router.balance_weight * balance + adapter.alignment_weight * alignment
        similarity = sum(outputs.similarities.values())
        total += adapter.similarity_weight * similarity
        return ReferenceLosses(nll, balance, alignment, similarity, total, outputs)

    def _rms_norm(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_epsilon) * scale

    def _linear(self, x: np.ndarray, leaves: dict[str, np.ndarray], path: str) -> np.ndarray:
        """Return W x plus the adapter's update and the bias."""
        W, adapter, name = leaves['kernel'].T, self.adapter, path.rsplit('/', 1)[-1]
        y = x @ W.T
        if adapter is not None and name in adapter.targets:
            adapter, leaves = self._of_layer(adapter, leaves, int(path.split('/')[1]))
            self.inputs[path] = x
            routings = None
            if path in self.orders:
                sampled = self.orders[path]
                routings = [reference.sampled_routing(order, adapter) for order in sampled]
            elif not adapter.tasks:
                routings = [reference.token_routing(each, each, leaves, adapter) for each in x]
            if adapter.has_router:
                self.routings[path] = routings
            if 'router' in leaves:
                self.routers[path] = leaves['router']
            elif 'down' in leaves:
                self.projected[path] = x @ leaves['down'][0]
            if adapter.similarity_weight:
                self.similarities[path] = reference.similarity_loss(leaves, adapter)
            if adapter.structure.kernel_dependent:
                self.norms[path] = reference.column_norms(W, leaves, adapter)
            norms = self.fixed_norms.get(path)
            y = reference.adapted_linear(x, W, leaves, adapter, norms, routings, self.tasks)
        return y + leaves['bias'] if 'bias' in leaves else y

    def _of_layer(
        self, adapter: AdapterConfig, leaves: dict[str, np.ndarray], i: int
    ) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
        """Return the adapter of layer i, without the experts that this layer does not have."""
        counts, E = adapter.experts_per_layer, adapter.num_experts
        if not counts:
            return adapter, leaves
        n = counts[i * len(counts) // self.config.num_layers]
        top_k = n if adapter.router.top_k == E else adapter.router.top_k
        own = replace_settings(adapter, num_experts=n, top_k=top_k, experts_per_layer=())
        kept = {name: leaf[:n] for name, leaf in leaves.items() if leaf.shape[0] == E}
        return own, leaves | kept | {'router': leaves['router'][:, :n]}

    def _attention(
        self, x: np.ndarray, block: dict, i: int, positions: np.ndarray, segments: np.ndarray
    ) -> np.ndarray:
        config, (rows, length) = self.config, positions.shape

        def heads(name: str, count: int) -> np.ndarray:
            y = self._linear(x, block[name], f'layers/{i}/attention/{name}')
            y = y.reshape(rows, length, count, config.head_width)
            if name != 'v' and config.qk_norm:
                y = self._rms_norm(y, block[f'{name}_norm']['scale'])
            return y if name == 'v' else self._rotary(y, positions)

        q = heads('q', config.num_heads)
        k, v = heads('k', config.num_kv_heads), heads('v', config.num_kv_heads)
        out = np.zeros_like(q)
        for row in range(rows):
            same = segments[row][:, None] == segments[row][None]
            sees = same & np.tri(length, dtype=bool)
            for head in range(config.num_heads):
                shared = head * config.num_kv_heads // config.num_heads
                scores = q[row, :, head] @ k[row, :, shared].T / np.sqrt(config.head_width)
                scores = np.exp(scores - scores.max(axis=-1, keepdims=True)) * sees
                attention = scores / scores.sum(axis=-1, keepdims=True)
                out[row, :, head] = attention @ v[row, :, shared]
        out = out.reshape(rows * length, -1)
        return self._linear(out, block['o'], f'layers/{i}/attention/o')

    def _rotary(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Apply RoPE: rotate the complex pair (x_j, x_{j + C/2}) by position · frequency_j."""
        half = self.config.head_width // 2
        turn = np.exp(1j * positions[:, :, None, None] * _frequencies(self.config))
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def _mlp(self, x: np.ndarray, block: dict, i: int) -> np.ndarray:
        gate = self._linear(x, block['gate'], f'layers/{i}/mlp/gate')
        up = self._linear(x, block['up'], f'layers/{i}/mlp/up')
        return self._linear(gate / (1 + np.exp(-gate)) * up, block['down'], f'layers/{i}/mlp/down')


def _balance(routings: list[reference.TokenRouting], adapter: AdapterConfig) -> float:
    chosen = [each.chosen for each in routings]
    if settings_of(adapter).balance_scores == 'distance':
        return reference.distance_balance([each.choice for each in routings], chosen)
    return reference.load_balance([each.probabilities for each in routings], chosen)


def token_nll(outputs: ReferenceOutputs, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the cross-entropy of each token with loss, (B, T), in nats; 0 for the others."""
    logits = outputs.logits
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    target = np.take_along_axis(logits, batch['targets'][..., None], axis=-1)[..., 0]
    return (log_sum - target) * batch['loss_mask']


def choice_scores(outputs: ReferenceOutputs, segments: np.ndarray) -> np.ndarray:
    """Return the scores by which tokens that are not padding choose their experts, (M, E).

    The tokens of all routers are concatenated; M is zero without routers.
    """
    real = segments.reshape(-1) > 0
    scores = [
        each.choice
        for routings in outputs.routings.values()
        for each in itertools.compress(routings, real)
    ]
    most = max(map(len, scores), default=1)
    # Experts that a layer lacks are never chosen.
    padded = [np.pad(each, (0, most - len(each)), constant_values=-1) for each in scores]
    return np.array(padded).reshape(-1, most)


def routing_margin(choice_ME: np.ndarray, router: RouterConfig) -> float:
    """Return the smallest gap in score between the last chosen and the first other expert.

    With a threshold, this is the smallest distance of a score from zero. It is infinite if no
    token chooses.
    """
    if router.scores == 'threshold':
        return np.abs(choice_ME).min()
    if not len(choice_ME) or choice_ME.shape[-1] == router.top_k:
        return np.inf
    ordered = -np.sort(-choice_ME, axis=-1)
    return (ordered[:, router.top_k - 1] - ordered[:, router.top_k]).min()


def _layer(stacked: Any, i: int) -> Any:
    if isinstance(stacked, dict):
        return {key: _layer(value, i) for key, value in stacked.items()}
    return stacked[i]


def _frequencies(config: ModelConfig) -> np.ndarray:
    """Return the RoPE frequencies θ^(-2j/C), (C/2,), with Llama 3's scaling if configured.

    Wavelengths below original / high are kept, and those above original / low are multiplied by the
    scaling factor. Between them, the frequency is interpolated linearly in the number of turns
    within the original context.
    """
    scaling = config.rope_scaling
    frequencies = []
    for j in range(config.head_width // 2):
        frequency = config.rope_theta ** (-2 * j / config.head_width)
        if scaling is not None:
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            turns = scaling.original_context * frequency / (2 * np.pi)
            kept = min(max((turns - low) / (high - low), 0), 1)
            frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
        frequencies.append(frequency)
    return np.array(frequencies)
