"""Estimates of what fits into memory, compared with the compiler's allocation."""

import dataclasses
import importlib

import flax.linen as nn
import jax
import optax
import pytest

from malora_jax.errors import UserError
from malora_jax.models import Decoder, preset
from malora_jax.models.decoder import abstract_variables
from malora_jax.training import run_config
from malora_jax.training.memory_estimate import (
    format_estimates,
    memory_estimates,
    parse_memory_size,
    row_bytes,
)
from malora_jax.training.state import create_state
from malora_jax.training.step import abstract_batch, make_train_step
from tests.helpers.models import small_method
from tests.helpers.steps import make_hyperparameters

pytestmark = pytest.mark.slow


def run(model: str = 'llama2-7b', **data):
    config = importlib.import_module('configs.intra_domain').get_config('malora')
    config.model.name = model
    config.data.update(data)
    return run_config(config.to_dict())


def compiled_bytes(model: Decoder, rows: int, length: int) -> int:
    params = nn.unbox(abstract_variables(model))['params']
    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(lambda params: create_state(model, optimizer, 0, params), params)
    step = make_train_step(model, optimizer, optax.constant_schedule(1e-3), 1)
    lowered = step.lower(
        state, params, abstract_batch(rows, length), make_hyperparameters(model.adapter)
    )
    found = lowered.compile().memory_analysis()
    return found.temp_size_in_bytes


@pytest.mark.parametrize(
    ('name', 'remat'), [('malora', 'light'), ('malora', 'full'), ('remix', 'light')]
)
def test_a_row_takes_what_the_compiler_gives_it(name, remat):
    """The test uses float32, because XLA computes bfloat16 in float32 on a CPU."""
    config = preset('tiny', width=256, hidden=768, num_layers=12)
    model = Decoder(config, small_method(name), remat)
    two, six = (compiled_bytes(model, rows, 256) for rows in (2, 6))
    assert row_bytes(model, 256) == pytest.approx((six - two) / 4, rel=0.15)


def test_options_for_llama2_7b():
    """The base model takes 13.5 GB in bfloat16; linears have 6.5 of 6.7 billion parameters."""
    found = {
        (option.kernel_format, option.remat): option
        for option in memory_estimates(run(), 24 * 10**9)
    }
    assert len(found) == 6
    for remat in ('light', 'full'):
        bfloat16, int8, int4 = (found[kept, remat] for kept in ('bfloat16', 'int8', 'int4'))
        linears = 32 * 4096 * (4 * 4096 + 3 * 11008)
        scales = 4 * 32 * (5 * 4096 + 2 * 11008)
        assert bfloat16.resident_bytes - int8.resident_bytes == linears - scales
        assert bfloat16.resident_bytes - int4.resident_bytes == linears * 3 // 2 - 4 * linears // 64
        assert bfloat16.row_bytes == int8.row_bytes == int4.row_bytes
        assert bfloat16.max_rows < int8.max_rows < int4.max_rows
        for option in (bfloat16, int8, int4):
            if option.max_rows:
                assert option.total_bytes <= 0.9 * 24e9 < option.total_bytes + option.row_bytes
    assert found['int8', 'full'].max_rows > found['int8', 'light'].max_rows
    # The layer inputs alone are 32 · 512 · 4096 · 2 bytes.
    assert found['int8', 'full'].row_bytes > 32 * 512 * 4096 * 2


def test_advice():
    small = run(batch_size=1)
    found = memory_estimates(small, 24 * 10**9)
    text = format_estimates(small, found, 24 * 10**9)
    assert text.startswith('malora on llama2-7b in bfloat16, rows of 512 tokens, 24.0 GB')
    assert text.endswith(
        "A batch of 1 fits with --config.model.quantize='' --config.training.remat=light; the "
        f'maximum batch size is {found[0].max_rows}.'
    )
    large = dataclasses.replace(small, data=dataclasses.replace(small.data, batch_size=10**6))
    best = max(found, key=lambda option: option.max_rows)
    assert f'--config.data.batch_size={best.max_rows} fits' in format_estimates(
        large, found, 24 * 10**9
    )
    huge = format_estimates(
        run('tiny', batch_size=10**6), memory_estimates(run('tiny'), 10**9), 10**9
    )
    assert "fit. --config.model.quantize='' --config.training.remat=" in huge
    nothing = memory_estimates(small, 10**9)
    assert format_estimates(small, nothing, 10**9).endswith(
        'data.sequence_length or the adapter smaller.'
    )


def test_sizes_of_memory():
    assert parse_memory_size('24GB') == 24 * 10**9 and parse_memory_size('1.5 GiB') == 3 * 2**29
    for text in ('24', 'GB', '0GB', '24TB'):
        with pytest.raises(UserError, match='it must be a size such as 24GB or 16GiB'):
            parse_memory_size(text)
