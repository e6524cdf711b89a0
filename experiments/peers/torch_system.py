"""Peer system: a model in torch on our base weights, with our adapter's weights copied into it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from experiments.peers.batches import PeerBatch
from experiments.peers.jax_system import Leaves
from experiments.peers.links import ParameterLink
from malora_jax import errors
from malora_jax.models.loading.base_model import LoadedBase
from malora_jax.models.loading.params import to_huggingface
from malora_jax.training.config import OptimizerConfig

# A function that returns the loss of a padded batch.
LossFunction = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

# The peers run on the same kind of device as our systems.
DEVICE = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'


class TorchSystem:
    """A peer's model in torch, trained as its users do: autograd and AdamW, without compilation."""

    def __init__(
        self,
        loss: LossFunction,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: OptimizerConfig,
        leaves: Leaves,
        links: Sequence[ParameterLink],
    ):
        """Create the optimizer, and copy our adapter's weights into the model.

        Args:
            loss: Function that returns the model's loss on a padded batch.
            parameters: Trained parameters by name.
            optimizer: Optimizer settings, of which the learning rate and the weight decay are used.
            leaves: Leaves of our adapter; {} for a peer that keeps its own initialization.
            links: Position in `leaves` of each parameter; the weights are copied from there.
        """
        self._loss, self._parameters = loss, parameters
        self._leaves, self._links = leaves, links
        with torch.no_grad():
            for name, path, part in links:
                parameters[name].copy_(torch.from_numpy(leaves[path][part].T.copy()))
        self._optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            fused=True,  # Faster than the default.
        )

    def step(self, batch: PeerBatch) -> None:
        """Run one training step."""
        self._loss(_tensors(batch)).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if DEVICE == 'cuda':
            torch.cuda.synchronize()

    def gradients(self, batch: PeerBatch) -> tuple[float, Leaves]:
        """Return the loss in nats, and its gradient in the shapes of our leaves."""
        loss = self._loss(_tensors(batch))
        loss.backward()
        gradients = {path: np.empty_like(leaf) for path, leaf in self._leaves.items()}
        for name, path, part in self._links:
            gradients[path][part] = self._parameters[name].grad.numpy(force=True).T
        self._optimizer.zero_grad()
        return loss.item(), gradients


def llama(base: LoadedBase) -> Any:
    """Return the frozen base model as a LlamaForCausalLM of `transformers`.

    Args:
        base: Base model.

    Raises:
        UserError: The base model is not a plain Llama, the only family that all peers support.
    """
    config = base.config
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
            pad_token_id=base.tokenizer.eos_id,
            use_cache=False,
        )
    )
    tensors = to_huggingface(config, base.params)
    # A model with tied embeddings has no separate tensor for the output head.
    model.load_state_dict(
        {name: torch.tensor(tensor) for name, tensor in tensors.items()}, strict=not config.tied
    )
    return model.requires_grad_(False).to(DEVICE)


def _tensors(batch: PeerBatch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in batch.padded.items()}
