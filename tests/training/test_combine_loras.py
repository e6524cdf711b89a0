"""The config of mixtures of trained LoRAs, whose argument is the start of the routers."""

import pytest

from configs import combine_loras, quickstart
from malora_jax.models import Decoder
from malora_jax.training.config import run_config
from malora_jax.training.plan import count_model_parameters
from malora_jax.training.training_config import ROUTER_STARTS


@pytest.mark.parametrize('start', ROUTER_STARTS)
def test_only_routers_are_trained_with_less_than_one_percent_of_the_parameters(start):
    config = combine_loras.get_config(start)
    config.training.start_from = ','.join(config.data.tasks)
    run = run_config(config.to_dict())
    assert run.method == 'molora'
    counts = count_model_parameters(Decoder(run.model, run.adapter))
    lora = run_config(quickstart.get_config('lora').to_dict())
    of_one = count_model_parameters(Decoder(lora.model, lora.adapter))['trainable']
    # 30 layers with routers of 6 columns, whose inputs have 576 or, for `down`, 1,536 features.
    assert counts['trainable'] == 30 * 6 * (5 * 576 + 1536) == counts['by_group']['router']
    assert counts['frozen_in_adapter'] == 6 * of_one
    assert counts['trainable'] < 0.01 * counts['frozen_in_adapter']
