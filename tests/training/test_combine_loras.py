"""The config of mixtures of trained LoRAs."""

import pytest

from configs import combine_loras
from malora_jax.models import Decoder
from malora_jax.training.config import run_config
from malora_jax.training.plan import count_model_parameters
from malora_jax.training.training_config import ROUTER_STARTS


@pytest.mark.parametrize('start', ROUTER_STARTS)
def test_routers_have_less_than_one_percent_of_the_parameters_of_the_loras(start):
    config = combine_loras.get_config(start)
    config.training.start_from = ','.join(config.data.tasks)
    run = run_config(config.to_dict())
    counts = count_model_parameters(Decoder(run.model, run.adapter))
    assert counts['trainable'] <= 0.01 * counts['frozen_in_adapter']
