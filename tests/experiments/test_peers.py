"""The comparison with other implementations (peers): inputs, report, and equal results.

The last part needs the peers' packages (experiments/peers/README.md), and is skipped without them.
"""

import json

import numpy as np
import pytest

from configs import quickstart
from experiments.peers import batches
from experiments.peers.benchmark import benchmark
from experiments.peers.links import linear_names, make_links
from experiments.peers.measure import SystemDifference, compare, time_interleaved
from experiments.peers.report import summarize_kind, tables
from experiments.peers.systems import PAIRS
from malora_jax.errors import UserError
from malora_jax.models import preset
from tests.helpers.fork_server import run_module
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow(start_first=True)


def run(*arguments):
    config = '--config=configs/quickstart.py'
    return run_module('experiments.peers', config, *arguments, timeout=300)


# Two rows with the examples 1 2 3 4, 5 6 7 and 8 9; the last token of each is only predicted.
PACKED = {
    'inputs': np.array([[1, 2, 3, 5, 6, 0], [8, 0, 0, 0, 0, 0]], np.int32),
    'targets': np.array([[2, 3, 4, 6, 7, 0], [9, 0, 0, 0, 0, 0]], np.int32),
    'loss_mask': np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]], np.float32),
    'task_ids': np.zeros((2, 6), np.int32),
    'segment_ids': np.array([[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]], np.int32),
    'positions': np.array([[0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0]], np.int32),
}


def test_real_rows_hold_the_same_examples():
    (step,) = batches.real_batches(iter([PACKED]), padding_id=99)
    assert step.tokens == 6
    assert step.padded['input_ids'].tolist() == [[1, 2, 3, 4], [5, 6, 7, 99], [8, 9, 99, 99]]
    labels = [[-100, -100, 3, 4], [-100, -100, 7, -100], [-100, 9, -100, -100]]
    assert step.padded['labels'].tolist() == labels
    assert step.padded['attention_mask'].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]


def test_synthetic_rows_are_full():
    step = next(batches.synthetic_batches(vocab_size=50, seed=1))
    again = next(batches.synthetic_batches(vocab_size=50, seed=1))
    inputs, targets, mask = (step.packed[key] for key in ('inputs', 'targets', 'loss_mask'))
    assert step.tokens == inputs.size == 4 * 256
    np.testing.assert_array_equal(inputs, again.packed['inputs'])
    np.testing.assert_array_equal(inputs, step.padded['input_ids'])
    # Peers predict label i + 1 from input i. Our targets agree, except at the end of a row.
    np.testing.assert_array_equal(targets[:, :-1], step.padded['labels'][:, 1:])
    assert mask[:, :-1].all() and not mask[:, -1].any()
    assert inputs.min() >= 0 and inputs.max() < 50


def test_links_reach_every_part_of_a_leaf_once():
    config = preset('tiny')
    leaves = {
        'layers/attention/q/router': np.zeros((2, 64, 3)),
        'layers/mlp/down/up': np.zeros((2, 3, 4, 64)),
    }
    patterns = {'router': '{linear}.gate', 'up': '{linear}.{expert}.B'}
    links = make_links(leaves, config, patterns)
    assert len({link.name for link in links}) == len(links) == 2 + 2 * 3
    assert ('layers.1.self_attn.q_proj.gate', 'layers/attention/q/router', (1,)) in links
    assert ('layers.0.mlp.down_proj.2.B', 'layers/mlp/down/up', (0, 2)) in links
    assert sorted(linear_names(config, ('q', 'down'))) == ['down_proj', 'q_proj']


class Fixed:
    """A fake system with fixed loss and gradients that logs its steps."""

    def __init__(self, loss=1.0, gradient=1.0, name='', log=None, router=(1.0, 1.0, 1.0)):
        self.loss, self.gradient, self.name, self.log = loss, gradient, name, log
        self.router = router

    def step(self, step):
        self.log.append((self.name, step))

    def gradients(self, _):
        return self.loss, {
            'layers/a/up': np.array([[1.0, 2.0], [3.0, self.gradient]]),
            'layers/b/router': np.array(self.router)[:, None],
            'layers/b/up': np.ones((3, 1)),
        }


def test_compare_finds_the_worst_leaf():
    found = compare(Fixed(gradient=4.0), Fixed(1.00005, gradient=4.001), batch=None)
    assert found == SystemDifference(
        pytest.approx(5e-5), pytest.approx(0.001 / 5.0), 'up of layers/a, layer 1', []
    )


def test_a_token_may_choose_another_of_two_experts_that_are_nearly_equal():
    found = compare(Fixed(), Fixed(router=(1.0, 1.0, 1.02)), batch=None)
    assert (found.gradient, found.choices) == (0.0, ['layers/b, layer 2'])


@pytest.mark.parametrize(
    'peer',
    [
        *(Fixed(1.1), Fixed(gradient=1.1), Fixed(gradient=np.nan)),
        *(Fixed(router=(1.0, 1.0, each)) for each in (1.1, np.nan)),
        Fixed(router=(1.02, 1.02, 1.02)),
    ],
)
def test_what_differs_is_not_timed(peer):
    with pytest.raises(UserError, match='do not compute the same'):
        compare(Fixed(), peer, batch=None)


def test_systems_take_turns_on_the_same_rows():
    log = []
    systems = {name: Fixed(name=name, log=log) for name in 'ab'}
    seconds, timed = time_interleaved(systems, iter('uvwxyz'), turns=2, steps=2)
    steps = [''.join(entry) for entry in log]
    assert ' '.join(steps) == 'au av aw bu bv bw bx by bz ax ay az'
    assert timed == ['v', 'w', 'y', 'z']
    assert {name: len(each) for name, each in seconds.items()} == {'a': 4, 'b': 4}


def test_report():
    steps = [next(batches.real_batches(iter([PACKED]), 0)) for _ in range(3)]
    seconds = {'lora': [1.0, 2.0, 3.0], 'peft_lora': [3.0, 3.0, 3.0]}
    found = summarize_kind('real', seconds, steps, ['lora'])
    assert found['tokens'] == 6
    assert found['examples'] == 3
    assert found['positions'] == {'packed': 12, 'padded': 12}
    assert found['systems']['lora']['tokens_per_second']['median'] == 3.0
    assert found['pairs']['lora'] == {
        'ratio': pytest.approx(1.5),
        'by_step': pytest.approx({'lower': 1.25, 'median': 1.5, 'upper': 2.25}),
    }
    text = tables({'differences': {}, 'rows': {'real': found}})
    assert '| real | ours: LoRA / HF PEFT: LoRA | 1.50 | 1.25 to 2.25 |' in text
    assert '| real | HF PEFT: LoRA | 2.0 | 2.0 to 2.0 | 3.00 |' in text


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (['--pairs=loar'], "Unknown item of --pairs 'loar': did you mean"),
        (['--rows='], '--rows is empty; it must name some of synthetic, real.'),
        (['--config.adapter.rank=4'], 'Of config.adapter, only targets and dropout'),
    ],
)
def test_mistakes(arguments, expected):
    done = run(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert expected in line


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('base') / 'tiny.gguf'
    write_tiny_gguf(path)
    config = quickstart.get_config('lora')
    config.model.name, config.model.weights = 'tiny', str(path)
    config.data.tasks = ('chain_sum',)
    config.data.max_per_task, config.data.held_out = 40, 4
    config.data.sequence_length = 256
    return config


@pytest.mark.parametrize('pair', ['lora', 'dora', 'molora', 'trainer', 'mixlora'])
def test_peers_compute_the_same(config, pair):
    for package in ('peft', 'moe_peft'):
        pytest.importorskip(package)
    report = benchmark(config.to_dict(), [pair], ['synthetic', 'real'], turns=1, steps=1)
    for by_pair in report['differences'].values():
        assert list(by_pair) == ([pair] if PAIRS[pair].is_same_method else [])
        for found in by_pair.values():
            assert found['loss'] < 1e-5
            assert found['gradient'] < 1e-4
    assert all(found['pairs'][pair]['ratio'] > 0 for found in report['rows'].values())


def test_command(config, tmp_path):
    pytest.importorskip('peft')
    pytest.importorskip('moe_peft')
    output = tmp_path / 'new' / 'peers.json'
    overrides = [
        *('--config.model.name=tiny', f'--config.model.weights={config.model.weights}'),
        *("--config.data.tasks=('chain_sum',)", '--config.data.max_per_task=40'),
        *('--config.data.held_out=4', '--config.data.sequence_length=256'),
    ]
    done = run(*overrides, '--pairs=lora', '--rows=real', '--turns=1', f'--output={output}')
    assert done.returncode == 0, done.stderr
    assert '| real | ours: LoRA / HF PEFT: LoRA |' in done.stdout
    report = json.loads(output.read_text('utf-8'))
    assert report['rows']['real']['pairs']['lora']['ratio'] > 0
