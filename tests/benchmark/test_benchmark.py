"""The benchmark: timed steps and their order, throughput and other results, and the command."""

import dataclasses
import importlib.util
import json
import subprocess

import jax
import numpy as np
import pytest

from malora_jax.adapters import method
from malora_jax.benchmark import adapter_sizes, compiler_estimates, input_batches, report, timing
from malora_jax.benchmark.run import random_base_params, with_method
from malora_jax.benchmark.timed_steps import (
    PARTS,
    TimedStep,
    base_loss,
    compile_base_step,
    compile_method_step,
)
from malora_jax.models import Decoder
from malora_jax.training import run_config
from malora_jax.training.step import losses
from tests.helpers.fork_server import run_module

pytestmark = [
    pytest.mark.slow(start_first=True),
    pytest.mark.usefixtures('compile_quickly', 'commands_compile_quickly'),
]

TASKS = len(input_batches.SYNTHETIC_TASKS)


def tiny_run(**overrides):
    config = importlib.import_module('configs.quickstart').get_config('malora')
    config.model.name = 'tiny'
    config.data.sequence_length, config.data.batch_size = 24, 4
    config.update_from_flattened_dict(overrides)
    return run_config(config.to_dict())


# Synthetic batches.


def test_synthetic_rows_are_full_and_predict_the_next_token():
    run = tiny_run()
    first, second = input_batches.synthetic_batches(run, 2)
    assert all(array.shape == (4, 24) for array in first.values())
    np.testing.assert_array_equal(first['inputs'][:, 1:], first['targets'][:, :-1])
    assert first['inputs'].max() < run.model.vocab_size
    assert (first['inputs'] != second['inputs']).mean() > 0.9
    assert (
        input_batches.real_tokens([first, second])
        == input_batches.loss_tokens([first, second])
        == 96
    )
    assert [set(row) for row in first['task_ids'].tolist()] == [{0}, {1}, {2}, {3}]


# Benchmarked methods.


@pytest.mark.parametrize('tied', [True, False])
def test_the_base_s_loss_is_the_model_s_without_an_adapter(tied):
    run = tiny_run()
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, tied=tied))
    params, (batch,) = random_base_params(run), input_batches.synthetic_batches(run, 1)
    batch['loss_mask'][:, ::3] = 0
    batch['segment_ids'][1, 15:] = 0
    embedded_ND = params['embedding'][batch['inputs'].reshape(-1)]
    found = jax.jit(base_loss(run))(embedded_ND, params, batch)
    sums = jax.jit(losses, static_argnums=(0, 3))(
        Decoder(run.model), {'params': params}, batch, TASKS
    )
    np.testing.assert_allclose(found, sums.nll.sum() / sums.loss_tokens.sum(), rtol=1e-6)


def test_the_base_s_gradient_is_its_loss_s_slope():
    run = tiny_run()
    params, (batch,) = random_base_params(run), input_batches.synthetic_batches(run, 1)
    embedded_ND = params['embedding'][batch['inputs'].reshape(-1)]
    loss = jax.jit(base_loss(run))
    gradient_ND = jax.grad(loss)(embedded_ND, params, batch)
    step_ND = 2e-4 * gradient_ND / np.abs(gradient_ND).max()
    slope = loss(embedded_ND + step_ND, params, batch) - loss(embedded_ND - step_ND, params, batch)
    np.testing.assert_allclose(slope / 2, (gradient_ND * step_ND).sum(), rtol=2e-2)


def test_a_method_s_subject_trains():
    """Each step starts from the state that the previous step left."""
    run = tiny_run()
    params, (batch,) = random_base_params(run), input_batches.synthetic_batches(run, 1)
    for name in ('lora', 'malora'):
        subject = compile_method_step(name, with_method(run, name), params, batch, TASKS)
        for part in PARTS:
            subject.run_part(part, batch)
        assert subject.trained_parameters > 0 and subject.temporary_bytes > 0
        assert subject.first_step_s > 0 and subject.compile_s > 0


def test_methods_have_their_own_settings_and_the_run_s_dropout_and_linears():
    run = tiny_run(**{'adapter.dropout': 0.25, 'adapter.targets': ('q', 'up'), 'adapter.rank': 3})
    adapter = with_method(run, 'molora').adapter
    assert (adapter.structure.rank, adapter.dropout, adapter.targets) == (8, 0.25, ('q', 'up'))


# Timing.


def fake(name: str, log: list, seconds) -> TimedStep:
    def run_part(part, batch):
        log.append((name, part, batch))

    return TimedStep(name, run_part, 1.0, 0.5, 100, 200, 7, 3)


def test_subjects_take_turns_from_another_first_one(monkeypatch):
    log: list = []
    subjects = [fake(name, log, 1.0) for name in ('a', 'b', 'c')]
    monkeypatch.setattr(timing, 'is_steady', lambda seconds: True)
    times = timing.measure(subjects, ['x', 'y'], 5)
    warm, rest = log[:9], log[9:]
    assert {(name, part) for name, part, _ in warm} == {(n, p) for n in 'abc' for p in PARTS}
    steps = [(name, batch) for name, part, batch in rest if part == 'step']
    assert ''.join(name for name, _ in steps) == 'abcbcacababcbca'
    assert ''.join(batch for _, batch in steps) == 'xxxyyyxxxyyyxxx'
    # Parts are timed in the first round and the fifth.
    assert sum(part == 'forward' for _, part, _ in rest) == 6
    assert np.isnan(times['b']['gradient']).tolist() == [False, True, True, True, False]
    assert all(len(times[name]['step']) == 5 for name in 'abc')


@pytest.mark.parametrize('steady_after, rounds', [(0, 4), (6, 6), (99, 8)])
def test_rounds_go_on_until_times_are_steady_or_twice_as_many(monkeypatch, steady_after, rounds):
    monkeypatch.setattr(timing, 'is_steady', lambda seconds: len(seconds) >= steady_after)
    times = timing.measure([fake('a', [], 1.0)], ['x'], 4)
    assert len(times['a']['step']) == rounds


def test_an_interrupt_leaves_the_whole_rounds(monkeypatch):
    log: list = []
    subjects = [fake('a', log, 1.0), fake('b', log, 1.0)]
    interrupted = subjects[1].run_part

    def run_part(part, batch):
        interrupted(part, batch)
        # Parts of b: three warm-ups, three in round 1, the step of round 2, and then this one,
        # the step of round 3.
        if sum(name == 'b' for name, _, _ in log) == 8:
            raise KeyboardInterrupt

    subjects[1].run_part = run_part
    times = timing.measure(subjects, ['x'], 9)
    assert len(times['a']['step']) == len(times['b']['step']) == 2
    log.clear()
    subjects[1].run_part = lambda part, batch: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        timing.measure(subjects, ['x'], 9)


def test_steady_is_a_narrow_middle_half():
    assert timing.is_steady(np.array([0.2, 1.0, 1.01, 1.02, 9.0]))
    assert not timing.is_steady(np.array([1.0, 1.05, 1.1, 1.15]))


# Report.


def example_times() -> timing.Times:
    nan = np.nan
    return {
        'base': {
            'forward': np.array([0.4, nan, nan]),
            'gradient': np.array([1.0, nan, nan]),
            'step': np.array([1.0, 2.0, 1.0]),
        },
        'lora': {
            'forward': np.array([0.5, nan, nan]),
            'gradient': np.array([1.8, nan, nan]),
            'step': np.array([2.0, 3.0, 2.2]),
        },
    }


def test_figures_by_hand():
    subjects = [fake('base', [], 0), fake('lora', [], 0)]
    found = report.summarize(subjects, example_times(), real_tokens=300, positions=400)
    lora = found['lora']
    assert lora['step_s'] == 2.2 and lora['rounds'] == 3 and not lora['steady']
    # The round-by-round ratios are 2, 1.5 and 2.2, with median 2; the ratio of the medians would be
    # 2.2 / 1.
    assert (lora['ratio_to_base'], lora['ratio_to_lora']) == (2.0, 1.0)
    assert lora['forward_s'] == 0.5
    assert lora['backward_s'] == pytest.approx(1.3)
    assert lora['optimizer_s'] == pytest.approx(0.2)
    assert lora['tokens_per_s'] == pytest.approx(300 / 2.2)
    assert lora['flops_per_s'] == pytest.approx(7 * 400 / 2.2)
    assert lora['first_step_s'] == 1.5
    base = found['base']
    assert (base['ratio_to_base'], base['ratio_to_lora']) == (1.0, 0.5)
    assert base['optimizer_s'] == 0
    json.dumps(found)


def test_the_table_says_what_is_not_steady_and_what_is_missing():
    subjects = [fake('lora', [], 0)]
    found = report.summarize(subjects, {'lora': example_times()['lora']}, 300, 400)
    text = report.format_table(found)
    cells = [cell.strip() for cell in text.splitlines()[2].strip('|').split('|')]
    assert cells[:2] == ['lora', '2.20'] and cells[2].endswith(' *')
    assert cells[7:9] == ['–', '1.000']
    assert text.splitlines()[-1].startswith('\\* Unsteady: the interquartile range')


# Growth of time and memory.


@pytest.mark.parametrize(
    'name, field, size, expected',
    [
        ('malora', 'num_experts', 64, (64, 12, 256)),
        ('malora', 'rank', 24, (8, 24, 64)),
        ('malora', 'rank', 128, (8, 128, 300)),
        ('molora', 'rank', 128, (8, 128, 0)),
        ('lora', 'rank', 8, (1, 8, 0)),
        ('lora', 'num_experts', 64, (1, 64, 0)),
    ],
)
def test_what_grows_keeps_its_share_of_the_subspace(name, field, size, expected):
    found = adapter_sizes.resize_adapter(method(name), field, size, width=300)
    sizes = found.num_experts, found.structure.rank, found.structure.subspace_rank
    assert sizes == expected
    assert found.router.top_k == method(name).router.top_k


def grown_figures() -> dict:
    base = {'flops_per_token': 4, 'resident_bytes': 6_000_000, 'temporary_bytes': 2_000_000}
    of_malora = {
        **{'step_s': 3.0, 'steady': False, 'ratio_to_base': 1.5, 'flops_per_token': 5},
        **{'resident_bytes': 9_000_000, 'temporary_bytes': 3_000_000, 'trained_parameters': 10**5},
    }
    return {4: {'base': base, 'malora': of_malora}, 8: {'base': base, 'malora': of_malora}}


def test_growth_by_hand():
    text = adapter_sizes.format_table('rank', grown_figures())
    # Five operations instead of four; 8 MB of the base model, and 16 bytes per trained parameter.
    assert text.splitlines()[2] == '| 4 | malora | 3.00 * | 1.50 | 1.25 | 12 | 10 |'
    assert len(text.splitlines()) == 4
    curve = adapter_sizes.curves(grown_figures())['malora']
    assert curve['size'] == [4, 8] and curve['time_floor'] == [1.25, 1.25]
    assert curve['bytes'] == [12e6, 12e6] and curve['bytes_floor'] == [9.6e6, 9.6e6]


# The command.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module('experiments.benchmark', *arguments, timeout=300)


def test_the_command_prints_and_writes(tmp_path):
    output = tmp_path / 'new' / 'found.json'
    done = command(
        *('--config=configs/quickstart.py', '--methods=base,lora,malora,malora_dispatch'),
        *('--model=tiny', '--tokens=64', '--rounds=2', f'--output={output}'),
        '--config.adapter.dropout=0.0',
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert {path.name for path in output.parent.iterdir()} == {
        *('found.json', 'found.md', 'found.png')
    }
    assert list(found['methods']) == ['base', 'lora', 'malora', 'malora_dispatch']
    assert found['tokens_per_step'] == found['positions_per_step'] == 64
    assert (found['model'], found['dropout'], found['rows']) == ('tiny', 0.0, 'synthetic')
    for figures in found['methods'].values():
        assert figures['step_s'] > 0 and figures['ratio_to_base'] > 0
        assert figures['rounds'] in (2, 3, 4)
    assert found['methods']['lora']['ratio_to_lora'] == 1
    assert {'device', 'processor', 'cores', 'versions'} <= found['machine'].keys()
    assert output.with_suffix('.md').read_text() in done.stdout


def test_the_command_measures_growth(tmp_path):
    output = tmp_path / 'grown.json'
    done = command(
        *('--config=configs/quickstart.py', '--model=tiny', '--tokens=32', '--rounds=1'),
        *('--methods=malora', '--grow=num_experts', f'--output={output}'),
        "--config.adapter.targets=('q',)",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert list(found['sizes']) == ['4', '8', '16', '32', '64']
    parameters = [methods['malora']['trained_parameters'] for methods in found['sizes'].values()]
    assert parameters == sorted(parameters) and parameters[-1] > 8 * parameters[0]
    assert all(methods['base']['step_s'] > 0 for methods in found['sizes'].values())
    assert output.with_suffix('.md').read_text() in done.stdout
    assert output.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (['--methods=lora,malorra'], "Unknown method 'malorra': did you mean malora"),
        (
            ['--methods=lora,lora'],
            "--methods is 'lora,lora'; it must be one or more distinct names",
        ),
        (['--rounds=0'], 'rounds'),
    ],
)
def test_mistakes_are_one_line(arguments, expected):
    done = command('--config=configs/quickstart.py', '--model=tiny', *arguments)
    assert done.returncode == 2
    assert expected in done.stderr and len(done.stderr.splitlines()) == 1


def test_base_subject_runs_all_parts():
    run = tiny_run()
    params, (batch,) = random_base_params(run), input_batches.synthetic_batches(run, 1)
    subject = compile_base_step(run, params, batch)
    for part in PARTS:
        subject.run_part(part, batch)
    assert subject.trained_parameters == 0


# Results of compiling for a TPU topology.


def test_without_a_compiler_for_the_topology_it_is_said():
    done = command(
        *('--config=configs/quickstart.py', '--model=tiny', '--topology=v5e:nonsense'),
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith('--topology=v5e:nonsense cannot be compiled for (')


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs libtpu')
def test_estimates_of_the_tpu_s_compiler(tmp_path):
    output = tmp_path / 'found.json'
    done = command(
        *('--config=configs/quickstart.py', '--model=tiny', '--topology=v5e:2x2'),
        *('--methods=base,lora,malora', f'--output={output}'),
    )
    assert done.returncode == 0, done.stderr
    methods = json.loads(output.read_text())['methods']
    assert 0 < methods['base']['flops'] < methods['lora']['flops'] < methods['malora']['flops']
    assert 0 < methods['base']['cycles'] < methods['lora']['cycles']


def test_the_layer_that_is_estimated_compiles_on_any_backend():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    small, large = (
        compiler_estimates._estimate(tiny_run(), method('lora', rank=rank), place)
        for rank in (2, 32)
    )
    assert 0 < small['flops'] < large['flops'] and small['temporary_bytes'] > 0


def test_the_table_of_estimates():
    figures = {'cycles': 2_000_000, 'temporary_bytes': 3e6, 'flops': 4e9}
    found = {
        'lora': figures,
        'malora': figures | {'cycles': 2_100_000},
        'malora_dispatch': figures | {'cycles': 0},
    }
    assert compiler_estimates.format_table(found).splitlines()[2:] == [
        '| lora | 2,000,000 | 1.000 | 3 | 4 |',
        '| malora | 2,100,000 | 1.050 | 3 | 4 |',
        '| malora_dispatch | – | – | 3 | 4 |',
    ]
