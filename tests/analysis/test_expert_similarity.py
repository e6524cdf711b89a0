"""Similarity of experts: which runs are compared, and results for planted similarities."""

import numpy as np
import pytest

from malora_jax.adapters.trees import linear_leaves
from malora_jax.analysis import adapter_weights
from malora_jax.analysis.adapter_weights import expert_projections, initial_adapter
from malora_jax.analysis.expert_similarity import ComparedRun, comparable_pairs, expert_similarities
from malora_jax.models import Decoder, preset
from malora_jax.training import run_config
from malora_jax.training.checkpoint import LatestCheckpoint
from malora_jax.training.identity import RunIdentity
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import create_state
from tests.helpers import reference
from tests.helpers.models import STRUCTURES, random_variables, small_method, tiny_model
from tests.helpers.runs import toy_run_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', STRUCTURES)
def test_the_projections_of_an_expert_multiply_to_its_update(name):
    """The product equals the paper's equation of each expert, in every layer."""
    config = small_method(name)
    variables = random_variables(tiny_model(config))
    found = expert_projections(config.structure, variables, 'k')
    down_LEDR, up_LEFR = found['A'], found['B']
    leaves = linear_leaves(variables, 'k')
    for layer in range(len(up_LEFR)):
        own = {key: np.asarray(leaf[layer], np.float64) for key, leaf in leaves.items()}
        # An adapter with parameters for each task has the projections of each task.
        matrix = reference.task_matrix if config.tasks else reference.expert_matrix
        for t in range(len(config.tasks) or config.num_experts):
            shared = 0 if down_LEDR.shape[1] == 1 else t
            found = up_LEFR[layer, t] @ down_LEDR[layer, shared].T
            expected = matrix(t, own, config)
            assert np.abs(expected).max() > 0.01
            np.testing.assert_allclose(found, expected, atol=1e-12)


def candidate(name: str, method: str, tasks: str, experts: int = 1) -> ComparedRun:
    return ComparedRun(name, method, frozenset(tasks), experts)


def test_the_settings_of_the_paper():
    runs = [
        candidate('mixed', 'malora', 'ab', 8),
        candidate('a0', 'lora', 'a'),
        candidate('a1', 'lora', 'a'),
        candidate('b0', 'lora', 'b'),
        candidate('other', 'dora', 'a'),
        candidate('both', 'lora', 'ab'),
    ]
    found = {each.label: each.pairs for each in comparable_pairs(runs)}
    assert found == {
        'experts within mixed': [(0, 0)],
        'lora runs of the same tasks': [(1, 2)],
        'lora runs of different tasks': [(1, 3), (2, 3)],
    }
    assert comparable_pairs(runs[3:5]) == []


def projections(seed: int, experts: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    down, up = ((2, experts, 10, 2), (2, experts, 2, 12))
    found = {'A': rng.standard_normal(down), 'B': rng.standard_normal(up).swapaxes(-1, -2)}
    return found


def test_experts_are_held_against_their_start_and_against_independent_ones():
    """All A start from one draw, and training turns one of the three away from it."""
    one = projections(0)
    one['A'][:] = one['A'][:, :1]
    trained = {key: leaf.copy() for key, leaf in one.items()}
    orthonormal, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((10, 4)))
    trained['A'][:, :2] = orthonormal[:, :2]
    trained['A'][:, 2] = orthonormal[:, 2:]
    wanted = comparable_pairs([candidate('run', 'molora', 'ab', 3)])
    (found,) = expert_similarities(wanted, [[(trained, one)]] * 2)
    assert found.num_pairs == 3
    np.testing.assert_allclose(found.sides['A'].trained, np.full((2, 2), 1 / 3), atol=1e-12)
    np.testing.assert_allclose(found.sides['A'].start, np.ones((2, 2)))
    np.testing.assert_allclose(found.sides['A'].independent, np.full((2, 2), 2 / 10))
    assert found.sides['B'].start is None
    np.testing.assert_allclose(found.sides['B'].independent, np.full((2, 2), 2 / 12))


def test_different_numbers_of_down_and_up_projections():
    one = {'A': projections(0)['A'], 'B': projections(1, 5)['B']}
    wanted = comparable_pairs([candidate('run', 'd2mora', 'ab', 3)])
    (found,) = expert_similarities(wanted, [[(one, None)]])
    assert found.pairs == {'A': 3, 'B': 10} and found.num_pairs == 10


def test_runs_are_compared_expert_with_expert():
    same, other = projections(0, 1), projections(1, 1)
    wanted = comparable_pairs([candidate(name, 'lora', 'a') for name in 'xyz'])
    (found,) = expert_similarities(wanted, [[(same, same), (same, same), (other, None)]])
    assert found.num_pairs == 3
    (both,) = expert_similarities(wanted[:1], [[(same, same), (same, same), (same, same)]])
    np.testing.assert_allclose(both.sides['A'].trained, np.ones((1, 2)))
    assert 1 / 3 < found.sides['A'].trained[0, 0] < 0.9
    # One of the two started from an adapter.
    assert found.sides['A'].start is None and both.sides['A'].start is not None


def test_what_experts_share_is_left_out_and_what_has_no_update_is_not_known():
    hydra = {'A': projections(0)['A'][:, :1], 'B': projections(0)['B'].copy()}
    hydra['B'][:, 0] = 0.0
    wanted = comparable_pairs([candidate('run', 'hydralora', 'ab', 3)])
    (found,) = expert_similarities(wanted, [[(hydra, hydra)]])
    assert {*found.sides} == {'B'}
    one = found.sides['B'].trained.copy()
    # An expert without an update is part of two pairs, so only one pair remains.
    own = {key: leaf[:, 1:] if key == 'B' else leaf for key, leaf in hydra.items()}
    (rest,) = expert_similarities(wanted, [[(own, own)]])
    np.testing.assert_allclose(rest.sides['B'].trained, one)
    hydra['B'][:] = 0.0
    (empty,) = expert_similarities(wanted, [[(hydra, hydra)]])
    assert np.isnan(empty.sides['B'].trained).all()


@pytest.mark.usefixtures('compile_quickly')
def test_the_start_is_that_of_the_run_and_needs_no_base(tmp_path, monkeypatch):
    run = run_config(toy_run_config(tmp_path / 'nowhere.gguf', 'malora', seed=3))
    older = LatestCheckpoint(1, None)
    monkeypatch.setattr(adapter_weights, 'latest_checkpoint', lambda _: older)
    assert initial_adapter(tmp_path, run) is None, 'its signs were those of some device'
    newer = older._replace(identity=RunIdentity({}, {}, None))
    monkeypatch.setattr(adapter_weights, 'latest_checkpoint', lambda _: newer)
    goat = run_config(toy_run_config(tmp_path / 'nowhere.gguf', 'goat'))
    assert initial_adapter(tmp_path, goat) is None, 'it depends on the kernels'
    found = initial_adapter(tmp_path, run)
    model = Decoder(run.model, run.adapter)
    params = random_variables(Decoder(preset('tiny')), seed=5)['params']
    state = create_state(model, make_optimizer(run.optimizer, 1), 3, params)
    whole = {'adapter': state.adapter, 'adapter_frozen': state.adapter_frozen}
    for linear in run.adapter.targets:
        one, other = linear_leaves(found, linear), linear_leaves(whole, linear)
        assert one.keys() == other.keys() == {*run.adapter.leaf_names}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
