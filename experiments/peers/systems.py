"""Which systems are held against each other, and how each is made."""

import importlib.util
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from experiments.peers.ours import Leaves, Ours
from experiments.peers.rows import Rows
from malora_jax import errors
from malora_jax.adapters import AdapterConfig, method
from malora_jax.benchmark.machine import cores
from malora_jax.training.setup import Setup

# What they are called in reports. The peers' packages are those that have to be installed.
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
# Whose settings and weights each peer gets.
_TWINS = {
    'peft_lora': 'lora',
    'peft_dora': 'dora',
    'mola': 'molora',
    'mola_trainer': 'molora',
    'mixlora': 'molora',
}
_PACKAGES = ('torch', 'transformers', 'peft', 'moe_peft')


class System(Protocol):
    """What is timed and compared."""

    def step(self, rows: Rows) -> None:
        """One training step, to its end: forward, backward, AdamW over the adapter alone."""
        ...

    def gradients(self, rows: Rows) -> tuple[float, Leaves]:
        """Mean cross-entropy, and its gradient by our names of the adapter's leaves."""
        ...


class Pair(NamedTuple):
    """A system of ours and one of the peers.

    Attributes:
        ours, peer: their names.
        same: whether both compute the same, so that loss and gradients have to agree.
        targets: by kind of rows, how many times the peer's tokens a second ours should have.
    """

    ours: str
    peer: str
    same: bool
    targets: Mapping[str, float]


PAIRS = {
    'lora': Pair('lora', 'peft_lora', True, {'synthetic': 1.1, 'real': 1.5}),
    'dora': Pair('dora', 'peft_dora', True, {}),
    'molora': Pair('molora', 'mola', True, {}),
    'malora': Pair('malora', 'mola', False, {'synthetic': 2.5, 'real': 3.5}),
    'trainer': Pair('malora', 'mola_trainer', False, {}),
    'mixlora': Pair('malora', 'mixlora', False, {}),
}


def make(name: str, setup: Setup, dropout: float) -> System:
    """Makes one of the systems. Those of a pair that is the same start from the same weights.

    Args:
        name: in `TITLES`.
        setup: base, data and optimizer.
        dropout: in front of the down-projections.

    Raises:
        UserError: a package is not installed, or the peer lacks what the config asks for.
    """
    if name in OURS:
        return Ours(setup, _adapter(name, setup, dropout))
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise errors.UserError(
                f'{package} is not installed: experiments/peers/README.md says how.'
            )
    import torch

    from experiments.peers import hf_peft, mixtures

    torch.set_num_threads(cores())
    adapter = _adapter(_TWINS[name], setup, dropout)
    if name == 'mixlora':
        return mixtures.mixlora(setup, adapter)
    leaves = Ours(setup, adapter).leaves
    if name in ('peft_lora', 'peft_dora'):
        return hf_peft.make(setup, adapter, leaves)
    return mixtures.mola(setup, adapter, leaves, recompute=name == 'mola_trainer')


def _adapter(name: str, setup: Setup, dropout: float) -> AdapterConfig:
    """The settings of a method of ours, on the config's linears."""
    targets = setup.run.adapter.targets
    # MoLA's router scales the gates that it keeps; ours does not, as the paper's.
    return method(name, targets=targets, dropout=dropout, renormalize=name == 'molora')
