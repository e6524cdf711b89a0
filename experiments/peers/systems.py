"""Systems to compare, pairs of them, and the function that creates each system."""

import importlib.util
from typing import NamedTuple, Protocol

import jax

from experiments.peers.batches import PeerBatch
from experiments.peers.jax_system import JaxSystem, Leaves
from malora_jax import errors
from malora_jax.adapters import AdapterConfig, method
from malora_jax.benchmark.machine import num_cores
from malora_jax.training.setup import Setup

# Titles of the systems in reports.
OURS = {
    'lora': 'ours: LoRA',
    'dora': 'ours: DoRA',
    'molora': 'ours: MoLoRA, gates summing to one',
    'malora': 'ours: MALoRA',
}
PEERS = {
    'peft_lora': 'HF PEFT: LoRA',
    'peft_dora': 'HF PEFT: DoRA',
    'mola': 'MoE-PEFT: MoLA',
    'mola_trainer': 'MoE-PEFT: MoLA, recomputing as its trainer does',
    'mixlora': 'MoE-PEFT: MixLoRA',
}
TITLES = OURS | PEERS
# For each peer, our method whose settings and weights it gets.
_OUR_COUNTERPARTS = {
    'peft_lora': 'lora',
    'peft_dora': 'dora',
    'mola': 'molora',
    'mola_trainer': 'molora',
    'mixlora': 'molora',
}
_PACKAGES = ('torch', 'transformers', 'peft', 'moe_peft')


class System(Protocol):
    """A training system that can be timed and compared: a method of ours or of a peer."""

    def step(self, batch: PeerBatch) -> None:
        """Run one training step to its end: forward, backward, and AdamW over the adapter alone."""
        ...

    def gradients(self, batch: PeerBatch) -> tuple[float, Leaves]:
        """Return the mean cross-entropy in nats, and its gradient by path in our adapter."""
        ...


class SystemPair(NamedTuple):
    """One of our systems and one of the peers.

    Attributes:
        ours, peer: Names of the two systems.
        is_same_method: Whether both systems implement the same method, so that their losses and
            gradients must agree.
    """

    ours: str
    peer: str
    is_same_method: bool


PAIRS = {
    'lora': SystemPair('lora', 'peft_lora', True),
    'dora': SystemPair('dora', 'peft_dora', True),
    'molora': SystemPair('molora', 'mola', True),
    'malora': SystemPair('malora', 'mola', False),
    'trainer': SystemPair('malora', 'mola_trainer', False),
    'mixlora': SystemPair('malora', 'mixlora', False),
}


def make_system(name: str, setup: Setup, dropout: float) -> System:
    """Create a system; two systems that implement the same method start from the same weights.

    Args:
        name: Name of the system in `TITLES`.
        setup: Parts of the run: base model, data and optimizer.
        dropout: Dropout rate on the inputs of the down-projections.

    Raises:
        UserError: A package is not installed, or the peer does not support the config.
    """
    if name in OURS:
        return JaxSystem(setup, _adapter(name, setup, dropout))
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise errors.UserError(
                f'{package} is not installed: install it as experiments/peers/README.md describes.'
            )
    import torch

    from experiments.peers import hf_peft, mixtures

    if jax.default_backend() == 'gpu' and not torch.cuda.is_available():
        raise errors.UserError(
            'JAX uses a GPU, but torch does not find it: install torch with CUDA, or set '
            'JAX_PLATFORMS=cpu to compare on the CPU.'
        )
    torch.set_num_threads(num_cores())
    adapter = _adapter(_OUR_COUNTERPARTS[name], setup, dropout)
    if name == 'mixlora':
        return mixtures.mixlora(setup, adapter)
    leaves = JaxSystem(setup, adapter).leaves
    if name in ('peft_lora', 'peft_dora'):
        return hf_peft.make(setup, adapter, leaves)
    return mixtures.mola(setup, adapter, leaves, gradient_checkpointing=name == 'mola_trainer')


def _adapter(name: str, setup: Setup, dropout: float) -> AdapterConfig:
    """Return the adapter configuration of one of our methods, with the run's target modules."""
    targets = setup.run.adapter.targets
    # MoLA's router scales the selected gates to sum to one; ours does not, like the paper's.
    return method(name, targets=targets, dropout=dropout, renormalize=name == 'molora')
