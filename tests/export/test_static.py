"""Plain LoRA that approximates a mixture: exact where gates are the same for all tokens."""

import json

import jax
import numpy as np
import pytest

import malora_jax
from malora_jax.adapters.settings import replace_settings
from malora_jax.analysis.static_export import static_export
from malora_jax.errors import UserError
from malora_jax.export.adapter import write_adapter
from malora_jax.export.huggingface import write_merged
from malora_jax.export.peft import write_peft
from malora_jax.export.static import decompose
from malora_jax.models import Decoder, preset
from malora_jax.models.loading.base_model import load_base
from malora_jax.training import run_config
from malora_jax.training.setup import build_setup
from tests.export.helpers import TOKENS, restored_model, tiny_base
from tests.helpers.models import STRUCTURES, logits_of, random_variables, small_method
from tests.helpers.runs import TASKS, toy_run_config

# No other program has a second router, as D²MoRA does.
ROUTED = [name for name in STRUCTURES if small_method(name).has_router and name != 'd2mora']

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
    _, weights = tiny_base(tmp_path_factory.mktemp('base'))
    return build_setup(run_config(toy_run_config(weights)))


def mixture(setup, name: str, **changes):
    """Return a mixture of random experts; any changes also set its routers to zero.

    With all experts chosen, the gates are then constant.
    """
    found = restored_model(name, setup.base, setup.run.weights)
    if not changes:
        return found
    adapter = found.model.adapter
    model = Decoder(found.model.config, replace_settings(adapter, **changes))
    still = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if 'router' in str(path[-1]) else x, found.variables['adapter']
    )
    return found._replace(model=model, variables=found.variables | {'adapter': still})


def difference(one, other) -> float:
    logits = [logits_of(each.model, each.variables, TOKENS) for each in (one, other)]
    return float(np.abs(logits[0] - logits[1]).max())


# SMoRA and FlyLoRA have more than four experts, and a bias that needs a choice among them.
@pytest.mark.parametrize('name', [name for name in ROUTED if small_method(name).num_experts == 4])
def test_with_constant_gates_it_is_the_mixture(setup, name):
    same = mixture(setup, name, top_k=4)
    found = static_export(setup, same)
    assert difference(found.trained, same) < 2e-4
    assert difference(found.trained, same._replace(model=Decoder(same.model.config))) > 0.1
    adapter = found.trained.model.adapter
    assert (
        adapter.num_experts == 1 and adapter.structure.rank == found.manifest_entries['exact_rank']
    )
    assert adapter.scale == pytest.approx(same.model.adapter.scale)
    assert found.manifest_entries['lost_by_rank'] == 0
    for losses in found.losses.values():
        assert losses['static'] == pytest.approx(losses['mixture'], abs=1e-4)
        assert abs(losses['base'] - losses['mixture']) > 0.01


def test_a_routed_mixture_is_only_approximated(setup):
    found = static_export(setup, mixture(setup, 'malora'))
    assert found.losses.keys() == {*TASKS}
    assert any(abs(each['static'] - each['mixture']) > 1e-3 for each in found.losses.values())


def test_the_gates_of_all_tasks_are_the_mean_of_each(setup):
    """The update is linear in the gates."""
    mixed = mixture(setup, 'malora')
    both, *each = (static_export(setup, mixed, task) for task in ('', *TASKS))
    assert both.manifest_entries['gates_of'] == [*TASKS] and each[0].manifest_entries[
        'gates_of'
    ] == [TASKS[0]]
    updates = []
    for found in (both, *each):
        leaves = found.trained.variables['adapter']['layers']['mlp']['up']
        updates.append(leaves['down'][:, 0] @ leaves['up'][:, 0])
    assert np.abs(updates[1] - updates[2]).max() > 1e-4
    np.testing.assert_allclose(updates[0], (updates[1] + updates[2]) / 2, atol=1e-6)


def test_truncation_is_that_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    down, up = rng.normal(size=(2, 20, 6)), rng.normal(size=(2, 6, 15))
    for rank in (1, 3, 6):
        a, b = decompose(down, up).factors(rank)
        assert a.shape == (2, 20, rank) and b.shape == (2, rank, 15)
        u, sigma, vt = np.linalg.svd(down @ up)
        expected = u[:, :, :rank] * sigma[:, None, :rank] @ vt[:, :rank]
        np.testing.assert_allclose(a @ b, expected, atol=1e-12)


def test_rounding_errors_do_not_count_as_rank():
    rng = np.random.default_rng(0)
    down, up = rng.normal(size=(2, 20, 6)), rng.normal(size=(2, 6, 15))
    found = decompose(np.concatenate([down, down], axis=2), np.concatenate([up, -up / 3], axis=1))
    assert found.rank == 6 and found.sigma.shape == (2, 12)
    np.testing.assert_allclose(np.matmul(*found.factors(6)), down @ up * 2 / 3, atol=1e-12)
    assert [each.shape[-1] for each in found.factors(30)] == [30, 15]


def test_a_lower_rank_says_what_it_loses(setup):
    mixed = mixture(setup, 'molora')
    whole, cut = static_export(setup, mixed), static_export(setup, mixed, rank=2)
    assert (
        whole.manifest_entries['rank'] == whole.manifest_entries['exact_rank'] == 12
        and cut.manifest_entries['rank'] == 2
    )
    lost = total = 0.0
    for part, targets in whole.trained.variables['adapter']['layers'].items():
        for target, leaves in targets.items():
            other = cut.trained.variables['adapter']['layers'][part][target]
            full = leaves['down'][:, 0] @ leaves['up'][:, 0]
            lost += ((full - other['down'][:, 0] @ other['up'][:, 0]) ** 2).sum()
            total += (full**2).sum()
    assert cut.manifest_entries['lost_by_rank'] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert 0.1 < cut.manifest_entries['lost_by_rank'] < 1


def test_it_can_be_loaded_merged_and_given_to_peft(setup, tmp_path):
    found = static_export(setup, mixture(setup, 'malora'))
    about = found.manifest_entries | {'held_out_loss': found.losses}
    write_adapter(found.trained, tmp_path / 'static', about)
    assert json.loads((tmp_path / 'static' / 'manifest.json').read_text())['static'] == about
    again = malora_jax.load(tmp_path / 'static')
    assert again.model.adapter == found.trained.model.adapter
    write_peft(found.trained, tmp_path / 'peft')
    config = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
    assert config['r'] == 9 and config['lora_alpha'] / 9 == pytest.approx(2)
    write_merged(found.trained, tmp_path / 'merged')
    merged = load_base(preset('tiny'), str(tmp_path / 'merged'))
    logits = logits_of(Decoder(merged.config), {'params': merged.params}, TOKENS)
    expected = logits_of(found.trained.model, found.trained.variables, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    'name, arguments, expected',
    [
        (
            'lora',
            {},
            'lora is a single LoRA, not a routed mixture: use --format=peft, merged or adapter.',
        ),
        (
            'd2mora',
            {},
            'd2mora cannot be exported as static: a second router weights its up-projections, '
            'so its update is no sum over the experts of one router; use --format=transformers '
            'or adapter, or',
        ),
        ('malora', {'rank': 10}, '--rank is 10; it must be 0 or at most 9, which is exact.'),
        ('malora', {'task': 'toy'}, "Unknown --task 'toy': did you mean toy_copy?"),
    ],
)
def test_mistakes(setup, name, arguments, expected):
    with pytest.raises(UserError) as caught:
        static_export(setup, restored_model(name, setup.base), **arguments)
    assert str(caught.value).startswith(expected)


def test_a_rank_above_a_linear_s_shorter_side(setup):
    """In the tiny model, k has 32 outputs."""
    adapter = small_method('molora', num_experts=8, rank=8)
    model = Decoder(setup.base.config, adapter)
    variables = random_variables(model, seed=3) | {'params': setup.base.params}
    mixed = restored_model('molora', setup.base)._replace(model=model, variables=variables)
    found = static_export(setup, mixed, rank=48)
    assert (
        found.manifest_entries['exact_rank'] == 64
        and found.trained.model.adapter.structure.rank == 48
    )
    k = found.trained.variables['adapter']['layers']['attention']['k']
    assert k['down'].shape == (2, 1, 64, 48) and k['up'].shape == (2, 1, 48, 32)
    assert np.abs(k['down'][..., :32]).max() > 0 and not np.any(k['down'][..., 32:])


def test_a_subspace_with_one_expert_needs_no_gates(setup):
    adapter = small_method('malora', num_experts=1, top_k=1)
    model = Decoder(setup.base.config, adapter)
    variables = random_variables(model, seed=3) | {'params': setup.base.params}
    one = restored_model('malora', setup.base)._replace(model=model, variables=variables)
    assert difference(static_export(setup, one).trained, one) < 2e-4


def test_an_untrained_mixture_is_refused(setup):
    with pytest.raises(UserError, match='would change nothing'):
        static_export(setup, mixture(setup, 'malora')._replace(step=0))
