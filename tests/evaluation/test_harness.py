"""The adapter to lm_eval, on tasks defined here. Nothing is downloaded."""

import copy
import json
import os
import pathlib
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

# lm_eval reads these variables on import.
os.environ['HF_HUB_OFFLINE'] = os.environ['HF_DATASETS_OFFLINE'] = '1'
lm_eval = pytest.importorskip('lm_eval', reason="needs the extra 'harness'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model, model_registry  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from experiments import harness as command  # noqa: E402
from malora_jax.data import Example, get_template  # noqa: E402
from malora_jax.errors import UserError  # noqa: E402
from malora_jax.evaluation import choices, harness  # noqa: E402
from malora_jax.evaluation.harness import HarnessModel, LoadedModel  # noqa: E402
from malora_jax.evaluation.likelihood import (  # noqa: E402
    log_likelihoods,
    rolling_log_likelihoods,
)
from malora_jax.files import write_json, write_json_lines  # noqa: E402
from malora_jax.models.generate import Generator  # noqa: E402
from malora_jax.training.checkpoint import Checkpoints  # noqa: E402
from malora_jax.training.config import run_config  # noqa: E402
from malora_jax.training.optimizer import make_optimizer  # noqa: E402
from malora_jax.training.state import create_state  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402
from tests.helpers.runs import toy_run_config  # noqa: E402
from tests.helpers.tiny_gguf import write_tiny_gguf  # noqa: E402

QUESTIONS = [
    {'question': 'Where is the world?', 'options': ['in', 'on the other side', 'at'], 'label': 2},
    {'question': 'Who was it, and when?', 'options': ['a', 'nobody of them, ever'], 'label': 0},
    {'question': 'Naïve?', 'options': ['ééééééé', 'the it and', 'no', '他说'], 'label': 1},
    {'question': 'And then the end of it?', 'options': ['is', 'was'], 'label': 1},
]
TASK = """\
task: our_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: options
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""
WRITING = """\
task: our_writing
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: ""
generation_kwargs: {{until: [{stop}], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope='module')
def workdir(weights, tmp_path_factory) -> pathlib.Path:
    """Run directory with three checkpoints; the second one has the lowest validation loss."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    (folder / 'checkpoints').mkdir(parents=True)
    settings = toy_run_config(weights)
    write_json(folder / 'config.json', settings)
    run = run_config(settings)
    model, variables, _, _ = command.load_model(model='tiny', weights=str(weights))
    model = model.clone(adapter=run.adapter)
    state = create_state(model, make_optimizer(run.optimizer, 6), 0, variables['params'])
    data = iter(grain.MapDataset.range(3).to_iter_dataset())
    with Checkpoints(folder / 'checkpoints', keep=3) as checkpoints:
        for step, loss in [(1, 0.9), (2, 0.4), (3, 0.7)]:
            adapter = random_like(state.adapter, step)
            saved = state.replace(step=jnp.int32(step), adapter=adapter)
            checkpoints.save(saved, data, loss)
    return folder


def random_like(tree, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), tree)


@pytest.fixture(scope='module')
def subject(workdir) -> LoadedModel:
    return LoadedModel(*command.load_model(workdir=str(workdir)))


@pytest.fixture(scope='module')
def model(subject) -> HarnessModel:
    return HarnessModel(subject, batch_size=4)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Directory with task definitions and their rows."""
    write_json_lines(tmp_path / 'rows.jsonl', QUESTIONS)
    (tmp_path / 'choice.yaml').write_text(TASK.format(folder=tmp_path))
    return tmp_path


def run_tasks(model: HarnessModel, folder: pathlib.Path, *names: str):
    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(names),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )


def test_a_run_is_loaded_with_its_best_checkpoint(subject):
    adapter = subject.variables['adapter']
    assert jax.tree.leaves(adapter)
    jax.tree.map(np.testing.assert_array_equal, adapter, random_like(adapter, 2))
    assert subject.end_text == '<|im_end|>'


def test_our_scores_are_the_harness_s(model, subject, folder):
    """Our tokenization encodes context and continuation separately, as in training."""
    found = run_tasks(model, folder, 'our_choice')
    ours = {'acc': [], 'acc_norm': []}
    for row, sample in zip(QUESTIONS, found['samples']['our_choice'], strict=True):
        options = tuple(f' {option}' for option in row['options'])
        metadata = {'options': options, 'label': row['label']}
        example = Example(f'Question: {row["question"]}\nAnswer:', options[row['label']], metadata)
        requests = choices.option_requests(subject.tokenizer, get_template('bare'), example)
        likelihoods = log_likelihoods(
            subject.model, subject.variables, requests, batch_size=2, pad_multiple=16
        )
        theirs = sample['filtered_resps']
        nats = [each.log_probability for each in likelihoods]
        # Batches differ: 1e-4 for one token, and float32 rounding for sums over many tokens.
        their_nats = [score for score, _ in theirs]
        np.testing.assert_allclose(their_nats, nats, rtol=2e-6, atol=1e-4)
        assert [greedy for _, greedy in theirs] == [each.is_greedy for each in likelihoods]
        scores = choices.choice_scores(choices.choose(nats, options), metadata)
        assert sample['acc'] == scores['accuracy']
        assert sample['acc_norm'] == scores['accuracy_normalized']
        ours['acc'].append(scores['accuracy'])
        ours['acc_norm'].append(scores['accuracy_normalized'])
    for metric, each in ours.items():
        assert found['results']['our_choice'][f'{metric},none'] == np.mean(each)
        assert 0 < np.mean(each) < 1
    assert ours['acc'] != ours['acc_norm'], 'the lengths matter'


def test_texts_end_before_until(model, folder):
    (whole,) = ask(model, QUESTIONS[1]['question'], max_gen_toks=12)
    stop = whole[5:9]
    assert whole.index(stop) == 5
    task = WRITING.format(folder=folder, stop=json.dumps(stop))
    (folder / 'writing.yaml').write_text(task)
    samples = run_tasks(model, folder, 'our_writing')['samples']['our_writing']
    texts = [text for sample in samples for text in sample['filtered_resps']]
    free = ask(model, *(row['question'] for row in QUESTIONS), max_gen_toks=12)
    assert texts == [text.split(stop)[0] for text in free]


def ask(model: HarnessModel, *contexts: str, **settings) -> list[str]:
    return model.generate_until(
        [Instance('generate_until', {}, (context, settings), 0) for context in contexts]
    )


def test_requests_may_differ_in_their_settings(model):
    one, other = {'until': ['\n'], 'max_gen_toks': 12}, {'until': ['e'], 'max_gen_toks': 6}
    mixed = [
        Instance('generate_until', {}, (context, settings), 0)
        for context, settings in [('One', one), ('Two', other), ('Three', one)]
    ]
    expected = [*ask(model, 'One', 'Three', **one), *ask(model, 'Two', **other)]
    assert model.generate_until(mixed) == [expected[0], expected[2], expected[1]]


def test_sampling(subject, model):
    sampled = dict(do_sample=True, temperature=1.0, top_p=0.95, max_gen_toks=12)
    texts = ask(model, 'One', 'One', 'One', **sampled)
    assert len({*texts}) == 3
    assert ask(HarnessModel(subject, batch_size=2), 'One', 'One', 'One', **sampled) == texts
    assert ask(HarnessModel(subject, batch_size=4, seed=1), 'One', 'One', 'One', **sampled) != texts
    cold = ask(model, 'One', max_gen_toks=12)
    assert ask(model, 'One', **sampled | {'do_sample': False}) == cold


def test_a_text_ends_with_a_text_or_with_a_turn(subject, model):
    """Generation ends at the tokenizer's end-of-text token or the template's end token."""
    (whole,) = ask(model, 'Two', max_gen_toks=12)
    turn = HarnessModel(subject._replace(end_text=whole[5:8]), batch_size=4)
    assert ask(turn, 'Two', max_gen_toks=12) == [whole[:5]]
    tokenizer = copy.copy(subject.tokenizer)
    generator = Generator(subject.model, 2, batch_size=4, max_new_tokens=12)
    (ids,) = generator(subject.variables, [tokenizer.encode('Two')])
    tokenizer.eos_id = ids[7]
    text = HarnessModel(subject._replace(tokenizer=tokenizer), batch_size=4)
    expected = tokenizer.decode(ids[: ids.index(ids[7])], continues=True)
    assert ask(text, 'Two', max_gen_toks=12) == [expected]


def test_rolling_log_likelihoods(subject, weights):
    """Texts start from the BOS token, in windows of the context length in use."""
    texts = [' and the other of it' * 3, 'in']
    short = HarnessModel(subject, max_length=16)
    found = short.loglikelihood_rolling(
        [Instance('loglikelihood_rolling', {}, (text,), 0) for text in texts]
    )
    assert short.prefix_token_id == subject.tokenizer.token_to_id('<|im_start|>')
    ids = [subject.tokenizer.encode(text) for text in texts]
    assert len(ids[0]) > 16 >= len(ids[1])
    ours = rolling_log_likelihoods(
        short.loaded_model.model, subject.variables, ids, 1, batch_size=1, pad_multiple=16
    )
    np.testing.assert_allclose(found, [score.log_probability for score in ours], atol=1e-4)


def test_a_context_that_is_too_long_loses_its_beginning(subject, model):
    short = HarnessModel(subject, max_length=24)
    kept = subject.tokenizer.encode('Where is the world?' * 9)[-12:]
    text = subject.tokenizer.decode(kept)
    assert ask(short, 'Where is the world?' * 9, max_gen_toks=12) == ask(
        model, text, max_gen_toks=12
    )


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(model, subject):
    """This is lm_eval's rule; without it ' ' and 'the' would be two tokens."""
    apart = model.loglikelihood([Instance('loglikelihood', {}, ('It is ', 'the'), 0)])
    assert apart == model.loglikelihood([Instance('loglikelihood', {}, ('It is', ' the'), 0)])


def test_an_empty_context(model, subject):
    ((nats, _),) = model.loglikelihood([Instance('loglikelihood', {}, ('', 'the end'), 0)])
    ids = subject.tokenizer.encode('the end')
    (ours,) = log_likelihoods(
        subject.model, subject.variables, [([1], ids)], batch_size=1, pad_multiple=16
    )
    assert nats == pytest.approx(ours.log_probability, abs=1e-5)


class WithBos:
    bos_id, eos_id, named_tokens = 1, 2, {'bos_token': '<s>'}

    def encode(self, text, *, continues=False):
        return [1] * text.startswith('<s>') + [*text.removeprefix('<s>').encode()]

    def token_to_id(self, token):
        return {'<s>': 1}.get(token)


def test_texts_begin_with_bos_where_they_do(subject):
    model = HarnessModel(subject._replace(tokenizer=WithBos()))
    assert model.tok_encode('a') == model.tok_encode('<s>a') == [1, 97]
    assert model.tok_encode('a', add_special_tokens=False) == [97]
    assert model.prefix_token_id == 1


CONVERSATION = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'One?'},
    {'role': 'assistant', 'content': 'Two.'},
    {'role': 'user', 'content': 'Three?'},
]


def test_the_chat_template(model):
    text = (
        '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n'
        '<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nThree?<|im_end|>\n'
        '<|im_start|>assistant\n'
    )
    assert model.apply_chat_template(CONVERSATION) == text
    begun = [*CONVERSATION, {'role': 'assistant', 'content': 'Four: '}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == text + 'Four:'
    assert 'message' in model.chat_template(True)
    assert model.tokenizer_name == 'tiny'


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            {'top_k': 50},
            'generation_kwargs has top_k = 50, which is not supported; it may set until, '
            'max_gen_toks, do_sample, temperature, top_p.',
        ),
        (
            {'num_beams': 4},
            'generation_kwargs has num_beams = 4, which is not supported; it may set until, '
            'max_gen_toks, do_sample, temperature, top_p.',
        ),
        (
            {'max_gen_toks': 2048},
            'generation_kwargs.max_gen_toks is 2048; it must be below 2048, the context length in '
            'use for tiny.',
        ),
    ],
)
def test_settings_that_cannot_be(model, settings, message):
    with pytest.raises(UserError) as caught:
        ask(model, 'One', **settings)
    assert str(caught.value) == message


def test_beams_may_be_one(model):
    assert ask(model, 'One', num_beams=1, max_gen_toks=12) == ask(model, 'One', max_gen_toks=12)


@pytest.fixture
def registry(monkeypatch):
    """Registry of models; registrations are undone after the test."""
    monkeypatch.setattr(model_registry, '_objs', dict(model_registry._objs))


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['harness', *arguments])
    command.main()


def test_the_command_line(registry, monkeypatch, capsys, model, workdir, folder):
    call(
        monkeypatch,
        *('--model_args', f'workdir={workdir},max_length=1024', '--tasks', 'our_choice'),
        *('--include_path', str(folder), '--output_path', str(folder / 'results')),
    )
    assert '|our_choice|' in capsys.readouterr().out
    (path,) = (folder / 'results').rglob('results_*.json')
    found, expected = json.loads(path.read_text()), run_tasks(model, folder, 'our_choice')
    for metric in ('acc,none', 'acc_norm,none', 'acc_bytes,none'):
        assert found['results']['our_choice'][metric] == expected['results']['our_choice'][metric]
    assert found['config']['batch_size'] == 'auto'


def refusal(monkeypatch, *arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        call(monkeypatch, *arguments)
    return str(caught.value)


def test_what_the_harness_refuses_is_one_line(registry, monkeypatch):
    assert refusal(monkeypatch, '--tasks', 'our_choice', '--log_samples') == (
        'Specify --output_path if providing --log_samples or --predict_only'
    )


def registered(registry, **arguments):
    harness.register(command.load_model)
    return get_model('malora_jax').create_from_arg_obj(
        arguments, {'device': 'cuda:0', 'batch_size': '3', 'max_batch_size': None}
    )


def test_arguments_of_the_model(registry, workdir):
    model = registered(registry, workdir=str(workdir), max_length=99, seed=7)
    assert (model.max_length, model.seed, model.batch_size) == (99, 7, 3)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({}, '--model_args must name a run, workdir=DIR, or a base model, model=NAME.'),
        (
            {'workdir': 'here', 'model': 'tiny'},
            '--model_args must name a run, workdir=DIR, or a base model, model=NAME.',
        ),
        ({'workdir': 'here'}, 'here holds no run: there is no here/config.json.'),
        ({'model': 'tinny'}, "Unknown model 'tinny': did you mean tiny?"),
        ({'work_dir': 'here'}, "Unknown model argument 'work_dir': did you mean workdir?"),
    ],
)
def test_arguments_that_cannot_be(registry, arguments, message):
    with pytest.raises(UserError) as caught:
        registered(registry, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize('size', ['0', 'many'])
def test_batch_sizes_that_cannot_be(size):
    with pytest.raises(UserError) as caught:
        harness._batch_size(size)
    assert str(caught.value) == f"--batch_size is {size!r}; it must be at least 1, or 'auto'."


def test_positions_that_the_model_does_not_have(subject):
    with pytest.raises(UserError) as caught:
        HarnessModel(subject, max_length=4096)
    assert (
        str(caught.value) == 'max_length is 4096; it must be from 1 to 2048, the context of tiny.'
    )


def test_nothing_else_needs_lm_eval():
    program = (
        'import sys; sys.modules["lm_eval"] = None; import experiments.harness, '
        'malora_jax.evaluation.likelihood, malora_jax.training; experiments.harness.main()'
    )
    found = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.stderr.strip().split('\n')[-1] == (
        "malora_jax.errors.UserError: lm_eval is not installed: run pip install '.[harness]' in "
        "malora_jax's source directory."
    )
