"""A peer: a model in torch on our base weights, with our adapter's weights copied into it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from experiments.peers.ours import Leaves
from experiments.peers.rows import Rows
from malora_jax import errors
from malora_jax.models import ModelConfig
from malora_jax.models.loading import names
from malora_jax.models.loading.params import to_huggingface
from malora_jax.models.loading.weights import Base
from malora_jax.training.config import OptimizerConfig

# The loss of a padded batch.
Loss = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


class Link(NamedTuple):
    """Where a parameter of torch stands in our tree, which holds its transpose.

    Attributes:
        name: of the parameter.
        path: of our leaf.
        index: of the parameter's part in it: the layer, then the expert if the leaf has experts.
    """

    name: str
    path: str
    index: tuple[int, ...]


class TorchSystem:
    """A model in torch, trained as its library does: autograd, AdamW, no compilation."""

    def __init__(
        self,
        loss: Loss,
        parameters: Mapping[str, torch.nn.Parameter],
        links: list[Link],
        optimizer: OptimizerConfig,
    ):
        """Takes the trained parameters by name, and which of them ours correspond to."""
        self._loss, self._parameters, self._links = loss, parameters, links
        self._optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def copy(self, leaves: Leaves) -> None:
        """Copies our adapter's weights."""
        with torch.no_grad():
            for name, path, index in self._links:
                part = np.ascontiguousarray(leaves[path][index].T)
                self._parameters[name].copy_(torch.from_numpy(part))

    def step(self, rows: Rows) -> None:
        """One training step."""
        self._loss(_tensors(rows)).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def gradients(self, rows: Rows) -> tuple[float, Leaves]:
        """The loss and its gradient, in the shapes of our leaves."""
        loss = self._loss(_tensors(rows))
        loss.backward()
        parts: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
        for name, path, index in self._links:
            gradient = self._parameters[name].grad
            parts.setdefault(path, {})[index] = gradient.numpy().T.copy()
        self._optimizer.zero_grad()
        return loss.item(), {path: _joined(by_index) for path, by_index in parts.items()}


def llama(base: Base) -> Any:
    """The frozen base as `transformers` has it, a copy of ours.

    Raises:
        UserError: the base is not of the family that all peers know.
    """
    config, tokenizer = base.config, base.tokenizer
    if config.qkv_bias or config.qk_norm or config.rope_scaling:
        raise errors.out_of_range('model.name', config.name, 'a plain Llama, such as smollm2-135m')
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_width,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_epsilon,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tied,
            pad_token_id=tokenizer.eos_id,
            use_cache=False,
        )
    )
    tensors = to_huggingface(config, base.params)
    model.load_state_dict(
        {name: torch.from_numpy(tensor) for name, tensor in tensors.items()},
        strict=not config.tied,
        assign=True,
    )
    model.tie_weights()
    return model.requires_grad_(False)


def links(leaves: Leaves, config: ModelConfig, patterns: Mapping[str, str]) -> list[Link]:
    """The parameters that our leaves correspond to.

    Args:
        leaves: of our adapter.
        config: the base.
        patterns: the parameter's name by the last part of our leaf's path, with {linear}, such as
            layers.0.self_attn.q_proj, and {expert}.
    """
    return [
        Link(patterns[path.rsplit('/', 1)[1]].format(linear=linear, expert=expert), path, index)
        for path, leaf in leaves.items()
        for linear, expert, index in _parts(path, leaf, _linears(config))
    ]


def linear_names(config: ModelConfig, targets: tuple[str, ...]) -> list[str]:
    """What `transformers` calls the linears that are adapted, such as q_proj."""
    by_path = _linears(config)
    return [by_path[path][0].rsplit('.', 1)[1] for path in by_path if path.split('/')[-1] in targets]


def _linears(config: ModelConfig) -> dict[str, list[str]]:
    """The linears of `transformers`, one a layer, by our path."""
    return {
        leaf.path.removesuffix('/kernel'): [
            name.removeprefix('model.').removesuffix('.weight') for name in leaf.names
        ]
        for leaf in names.leaves(config, 'huggingface')
        if leaf.path.endswith('/kernel')
    }


def _parts(
    path: str, leaf: np.ndarray, linears: Mapping[str, list[str]]
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Linear, expert and index of each part of a leaf that is a parameter of its own."""
    linear_path, kind = path.rsplit('/', 1)
    for layer, linear in enumerate(linears[linear_path]):
        if kind in ('down', 'up'):
            yield from ((linear, expert, (layer, expert)) for expert in range(leaf.shape[1]))
        else:
            yield linear, 0, (layer,)


def _joined(by_index: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """One array of the parts of a leaf."""
    counts = [last + 1 for last in max(by_index)]
    parts = [by_index[index] for index in np.ndindex(*counts)]
    return np.stack(parts).reshape(*counts, *parts[0].shape)


def _tensors(rows: Rows) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in rows.padded.items()}
