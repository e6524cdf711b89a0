"""Settings of a mixture's adapter in the class that vLLM uses for settings of a LoRA."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper

from malora_vllm.mixture import Mixture, parse_mixture


@dataclasses.dataclass
class MixturePEFTHelper(PEFTHelper):
    """PEFTHelper with a mixture."""

    mixture: Mixture | None = None

    def validate_legal(self, lora_config: LoRAConfig) -> None:
        """Check the adapter against the server's LoRA settings.

        Raises:
            ValueError: The mixture's rank is too large, or vLLM does not support a setting.
        """
        if self.mixture.total_rank > lora_config.max_lora_rank:
            raise ValueError(_rank_message(self.mixture, lora_config.max_lora_rank))
        super().validate_legal(lora_config)


def lora_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a mixture's adapter with those that a LoRA must have.

    Args:
        config: Contents of an adapter_config.json with the key 'mixture'.

    Raises:
        ValueError: The `mixture` block is invalid.
    """
    mixture = parse_mixture(config['mixture'])
    rank = mixture.total_rank
    # vLLM multiplies B by lora_alpha / r.
    return {**config, 'mixture': mixture, 'r': rank, 'lora_alpha': mixture.scale * rank}


def _rank_message(mixture: Mixture, max_lora_rank: int) -> str:
    choices = [rank for rank in typing.get_args(MaxLoRARanks) if rank >= mixture.total_rank]
    remedy = (
        f'start the server with --max-lora-rank {min(choices)}.'
        if choices
        else 'export a mixture with a lower rank or fewer experts, since vLLM has no such rank.'
    )
    return (
        f'The mixture needs LoRA rank {mixture.total_rank} ({mixture.num_experts} experts x (rank '
        f'{mixture.rank} + {mixture.router_parts} for the router)), but the server allows '
        f'{max_lora_rank}: {remedy}'
    )
