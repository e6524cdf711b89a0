"""Every config and every run of a sweep: abstract training state and trained parameters."""

import functools
import importlib
import re
from typing import Any

import jax
import pytest

from configs import intra_domain_small
from malora_jax.adapters import trees
from malora_jax.adapters.settings import replace_settings
from malora_jax.errors import UserError
from malora_jax.models import Decoder
from malora_jax.models.decoder import abstract_variables
from malora_jax.runs.paper import PAPER_TABLES
from malora_jax.sweeps import expand
from malora_jax.training import run_config
from malora_jax.training.optimizer import make_optimizer
from malora_jax.training.state import create_state
from tests.helpers.paths import ROOT

# Number of trained parameters on LLaMA-2 7B, computed by hand from the shapes.
LLAMA2_7B = {
    'lora': 143_130_624,
    'dora': 144_359_424,
    'asylora': 157_286_400,
    'molora': 151_191_552,
    'molora_r12': 222_756_864,
    'molora_same_down': 222_756_864,
    'moasylora': 165_347_328,
    'malora': 158_859_264,
    'malora_small': 109_142_016,
    'malora_fixed_shared': 166_133_760,
    'malora_symmetric': 151_977_984,
    'malora_unshared': 158_343_168,
    'malora_fixed_core': 158_269_440,
    'malora_shared_up': 144_703_488,
    'molora_r16': 294_322_176,
    'malora_r24': 310_837_248,
}
# (inputs, outputs) of q, k, v, gate, up, down in each of 32 layers.
LINEARS = [(4096, 4096)] * 3 + [(4096, 11008)] * 2 + [(11008, 4096)]


def molora_by_hand(rank: int) -> int:
    return 32 * sum(8 * (rank * (n + m) + n) for n, m in LINEARS)


def malora_by_hand(rank: int, shared_rank: int) -> int:
    return 32 * sum(shared_rank * n + 8 * (rank * (shared_rank + m) + n) for n, m in LINEARS)


LLAMA2_7B |= {'molora_r4': molora_by_hand(4), 'molora_r32': molora_by_hand(32)}
LLAMA2_7B |= {'malora_r6': malora_by_hand(6, 16), 'malora_r48': malora_by_hand(48, 128)}
LLAMA2_7B |= {
    f'malora_d{d}_beta{beta}': malora_by_hand(rank, d)
    for rank, d in ((14, 16), (12, 32), (10, 48), (8, 64))
    for beta in ('050', '100', '125', '200')
}
# Number of runs of the other sweeps.
OWN_SWEEPS = {
    'rank': 16,
    'experts': 12,
    'rank_experts': 24,
    'learning_rate': 12,
    'ultralink_pruning': 10,
    'fair_rates': 52,
    'fair_methods': 110,
    'fair_task_counts': 72,
    'fair_real_rates': 13,
    'fair_real_tasks': 9,
}
# Number of trained parameters with each config's default method, MALoRA.
CONFIGS = {
    'inter_domain': LLAMA2_7B['malora'],
    'intra_domain': LLAMA2_7B['malora'],
    'intra_domain_small': 5_472_000,
    'quickstart': 19_123_200,
    'fair_comparison': 19_123_200,
    'fair_real_tasks': 5_472_000,
    'your_tasks': 19_123_200,
    'ultralink_lm': 248_627_200,  # 40 layers of widths 5,120 and 13,824.
    'ultralink_lm_small': 19_123_200,
    # For each linear: router 8n, shared down-projection 32n, cores 8·32·12, up-projections 8·12·m.
    'commonsense': 32 * 3 * (136 * 4096 + 3072),
    'math': 32 * (3 * (136 * 4096 + 3072) + 136 * (4096 + 11008) + 2 * 3072),
    'code': 36 * (2 * (136 * 4096 + 3072) + 2 * 265_216 + 887_808),
    'commonsense_small': 5_472_000,
    'math_small': 30 * (23_232 + 2 * 14_016 + 46_272 + 38_592),
    'code_small': 30 * (2 * 23_232 + 2 * 14_016 + 38_592),
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Paths of configs are relative to the repository root, as on the command line."""
    monkeypatch.chdir(ROOT)


def get_config(name: str, *argument: str):
    config = importlib.import_module(f'configs.{name}').get_config(*argument)
    if 'files' in config.get('data', {}):
        config.data.files = ('mine.jsonl',)
    return config


@functools.cache
def sweep(name: str) -> dict[str, Any]:
    return get_config(f'sweeps.{name}').to_dict()


def trained(config: dict[str, Any]) -> int:
    """Return the number of trained parameters of a run, counted in its initial state."""
    run = run_config(config)
    # One state is enough for runs with the same shapes.
    adapter = replace_settings(run.adapter, beta=1.0)
    return count_trained(Decoder(run.model, adapter, run.training.remat))


@functools.cache
def count_trained(model: Decoder) -> int:
    optimizer = make_optimizer(run_config(get_config('quickstart').to_dict()).optimizer, 100)
    state = jax.eval_shape(
        lambda params: create_state(model, optimizer, 0, params),
        abstract_variables(model)['params'],
    )
    count = trees.count(state.adapter)
    # AdamW has two moments for each trained parameter, and none for others.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * count
    return count


def test_every_config_is_checked_here():
    files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    # `combine_loras` takes no method; tests/training/test_combine_loras.py has its state.
    assert files == {*CONFIGS, '__init__', 'common', 'paper', 'saved', 'combine_loras'}
    files = {path.stem for path in (ROOT / 'configs' / 'sweeps').glob('*.py')}
    assert files == {*PAPER_TABLES, *OWN_SWEEPS, '__init__'}


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_has_its_state(name):
    assert trained(get_config(name).to_dict()) == CONFIGS[name]


@pytest.mark.parametrize('name', PAPER_TABLES)
def test_every_run_of_a_sweep_has_its_state(name):
    configs = expand(sweep(name))
    assert configs
    for name, run in configs.items():
        row = re.sub(r'(-\w+)?-seed\d+$', '', name)
        assert trained(run.config) == LLAMA2_7B[row], name


@pytest.mark.parametrize('name', OWN_SWEEPS)
def test_every_other_sweep_is_valid(name):
    assert len(expand(sweep(name))) == OWN_SWEEPS[name]


def test_the_sweep_over_ranks_has_the_runs_of_table_11():
    table = PAPER_TABLES['table11']
    found = expand(sweep('rank') | {'base': 'configs/inter_domain.py', 'seeds': (0,)})
    assert {table.row_of(run.config) for run in found.values()} == table.rows.keys()


def test_the_small_config_tells_what_its_methods_train():
    told = dict(re.findall(r'^    (\w+) +\d.* ([\d,]+)$', intra_domain_small.__doc__, re.MULTILINE))
    assert told.keys() == intra_domain_small.RANKS.keys()
    for method, count in told.items():
        config = intra_domain_small.get_config(method).to_dict()
        assert f'{trained(config):,}' == count, method


# Sweeps.


def test_a_run_for_each_name_and_seed():
    found = expand(sweep('table2'))
    assert list(found)[:4] == ['asylora-seed0', 'asylora-seed1', 'asylora-seed2', 'dora-seed0']
    assert len(found) == 5 * 3
    expected = get_config('intra_domain', 'dora')
    expected.seed = 2
    assert found['dora-seed2'].config == expected.to_dict()


def test_single_tasks_train_on_what_their_column_is_of():
    found = expand(sweep('table1'))
    data = {
        name: (run.config['data']['tasks'], run.config['evaluation']['tasks'])
        for name, run in found.items()
    }
    assert data['lora-humaneval-seed1'] == (('magicoder_evol',), ('humaneval',))
    assert data['asylora-arc_easy-seed0'] == (('alpaca_gpt4',), ('arc_easy',))
    assert len(data['malora-seed0'][0]) == 6 and len(data['malora-seed0'][1]) == 7
    assert len(found) == 3 * (7 + 2 * 7)


def test_overrides_reach_what_follows_from_them():
    found = expand(sweep('table11'))['malora_r48-seed0']
    adapter = found.config['adapter']
    assert (adapter['rank'], adapter['shared_rank'], adapter['beta']) == (48, 128, 5.0)
    assert adapter['alpha'] == 96.0
    assert expand(sweep('table12'))['malora_d48_beta050-seed0'].config['adapter']['alpha'] == 20.0


def test_a_sweep_with_another_base():
    changed = sweep('table2') | {'base': 'configs/intra_domain_small.py', 'seeds': (5,)}
    found = {name: run.config for name, run in expand(changed).items()}
    assert found['malora-seed5']['model']['name'] == 'smollm2-135m'
    assert found['malora-seed5']['adapter']['rank'] == 3


def test_what_is_no_sweep_is_refused(tmp_path):
    other = tmp_path / 'other.py'
    with pytest.raises(UserError, match=r"^base is '\S+other.py': there is no such file\.$"):
        expand(sweep('table2') | {'base': str(other)})
    other.write_text('')
    with pytest.raises(UserError, match=r"^base is '\S+other.py', which defines no get_config\.$"):
        expand(sweep('table2') | {'base': str(other)})
    runs = {'a': {'arg': 'lora', 'overrides': {'adapter': {'rank': 'all'}}}}
    with pytest.raises(
        UserError,
        match=r"^adapter\.rank cannot be 'all' in runs\.a\.overrides: the base has 64 there\.$",
    ):
        expand(sweep('table2') | {'runs': runs})


# The paper's numbers.


@pytest.mark.parametrize('name', PAPER_TABLES)
def test_a_sweep_tells_the_paper_s_numbers_and_what_it_leaves_open(name):
    text = importlib.import_module(f'configs.sweeps.{name}').__doc__
    for row in PAPER_TABLES[name].rows.values():
        assert str(row.average) in text
        assert row.printed_average is None or str(row.printed_average) in text
    for word in ('sequence length', 'schedule', 'batch', 'α', 'seed'):
        assert word in text
    assert f'--workdir=runs/{name}' in text


def test_averages_are_the_means_of_their_rows():
    rows = [row for table in PAPER_TABLES.values() for row in table.rows.values() if row.scores]
    assert len(rows) == 10
    for row in rows:
        assert sum(row.scores.values()) / len(row.scores) == pytest.approx(row.average, abs=0.06)


def test_tables_agree_on_what_they_share():
    """MoLoRA and MALoRA are in Tables 1, 3 and 11, and MALoRA of Table 2 is in Table 12."""
    for name in ('molora', 'malora'):
        row = PAPER_TABLES['table1'].rows[name]
        mean = sum(row.scores.values()) / len(row.scores)
        assert PAPER_TABLES['table3'].rows[name].average == row.average
        assert PAPER_TABLES['table11'].rows[name].average == pytest.approx(mean, abs=0.02)
    shared = PAPER_TABLES['table12'].rows['malora_d32_beta125']
    assert shared.average == PAPER_TABLES['table2'].rows['malora'].average
    assert shared.adapter_settings() == PAPER_TABLES['table2'].rows['malora'].adapter_settings()
