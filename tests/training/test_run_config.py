"""Validation of configs, with the message for each error, and of the files in configs/."""

import dataclasses
import importlib
import math
import pathlib

import flax.linen as nn
import pytest

from configs.common import base_config
from malora_jax.adapters import method, trees
from malora_jax.adapters.settings import settings_of, with_tasks
from malora_jax.errors import UserError
from malora_jax.models import Decoder, preset
from malora_jax.models.decoder import abstract_variables
from malora_jax.training import RunConfig, run_config
from tests.helpers.models import METHOD_NAMES

CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
    # Instead of a method, `saved` takes a run's config.json and `combine_loras` the start of its
    # routers; tests/experiments/test_sweep.py and test_combine_loras.py cover them. Configs of the
    # fair comparison have ranks of their own, which test_fair_configs.py covers.
    if path.stem not in ('__init__', 'common', 'paper', 'saved', 'combine_loras')
    and not path.stem.startswith('fair_')
)


# Configs with the ranks and the adapted linears of other papers.
BENCHMARKS = [
    f'{name}{size}' for name in ('commonsense', 'math', 'code') for size in ('', '_small')
]


def plain(method_name: str = 'malora'):
    return importlib.import_module('configs.quickstart').get_config(method_name).to_dict()


def changed(field: str, value):
    config = plain()
    *path, last = field.split('.')
    section = config
    for key in path:
        section = section[key]
    section[last] = value
    return config


def message(config) -> str:
    with pytest.raises(UserError) as caught:
        run_config(config)
    assert '\n' not in str(caught.value)
    return str(caught.value)


NUMBERS = ['optimizer.learning_rate', 'optimizer.clip_norm']
COUNTS = [
    *('data.max_per_task', 'data.held_out', 'data.sequence_length', 'data.batch_size'),
    *('training.checkpoint_every', 'training.keep_checkpoints'),
    'training.accumulate',
    *('evaluation.batch_size', 'evaluation.max_new_tokens'),
]


TASKS = ', '.join(plain()['data']['tasks'])
RATE = 'positive; to freeze leaves, name them in adapter.frozen'


@pytest.mark.parametrize('field', NUMBERS)
@pytest.mark.parametrize('value', [0, -1.0])
def test_must_be_positive(field, value):
    assert message(changed(field, value)) == f'{field} is {value!r}; it must be positive.'


def test_either_steps_or_epochs():
    config = changed('training.epochs', 2.0)
    assert message(config) == (
        'training.steps is 240; it must be at least 1 if training.epochs is 0, otherwise 0 '
        '(training.epochs is 2.0).'
    )
    config['training']['steps'] = 0
    assert run_config(config).training.epochs == 2.0
    config['training']['epochs'] = 0.0
    assert message(config).startswith('training.steps is 0; it must be at least 1 if')


@pytest.mark.parametrize('field', COUNTS)
@pytest.mark.parametrize(
    ('value', 'right'),
    [(0, 'at least 1'), (-1, 'at least 1'), (2.5, 'a whole number'), (True, 'a whole number')],
)
def test_must_be_a_whole_number(field, value, right):
    assert message(changed(field, value)) == f'{field} is {value!r}; it must be {right}.'


@pytest.mark.parametrize(
    'field, value, right',
    [
        ('optimizer.warmup_ratio', 1.0, 'at least 0 and below 1'),
        ('optimizer.warmup_ratio', -0.1, 'at least 0 and below 1'),
        ('optimizer.warmup_ratio', math.nan, 'a finite number'),
        ('optimizer.learning_rate', '1e-3', 'a finite number'),
        ('adapter.alpha', math.inf, 'a finite number'),
        ('adapter.renormalize', 1, 'True or False'),
        ('adapter.targets', 'q', 'a tuple, each item text in quotes'),
        ('adapter.targets', (1,), 'a tuple, each item text in quotes'),
        ('adapter.targets', (), 'at least one linear layer'),
        (
            'adapter.frozen',
            ('router', 'shared_down', 'core', 'up'),
            'a proper subset of the parameters, so that at least one is trained',
        ),
        ('data.weights', (1.0,), f'empty, or one positive number per task ({TASKS})'),
        (
            'data.weights',
            (1.0, 1.0, 0.0, 1.0, 1.0, 1.0),
            f'empty, or one positive number per task ({TASKS})',
        ),
        ('data.sequence_length', 8193, 'at most the context of smollm2-135m, 8192'),
        ('model.weights', 3, 'text in quotes'),
        ('optimizer.weight_decay', -0.1, 'at least 0'),
        ('data.validation', -1, 'at least 0'),
        ('training.evaluate_every', -1, 'at least 0'),
        ('training.evaluate_every', 2.5, 'a whole number'),
        ('training.patience', -1, 'at least 0'),
        ('training.patience', 3, '0 if training.evaluate_every is 0'),
        ('training.remat', 1, 'text in quotes'),
        *(
            (f'optimizer.{kind}_rate', rate, RATE)
            for kind in ('router', 'down', 'core', 'up', 'magnitude')
            for rate in (0.0, -1.0)
        ),
        ('adapter.rank', 0, 'at least 1'),
        ('data.held_out', 10**20, 'at most 2,147,483,647 in magnitude'),
        ('data.held_out', 10**9, 'at most 10,000,000'),
        ('data.validation', 10**8, 'at most 10,000,000'),
        ('data.max_per_task', 2**31 - 1, 'at most 10,000,000'),
        ('data.workers', 10**5, 'at most 1,000'),
        ('adapter.top_k', 9, 'at most num_experts = 8'),
    ],
)
def test_out_of_range(field, value, right):
    assert message(changed(field, value)) == f'{field} is {value!r}; it must be {right}.'


def test_choosing_a_checkpoint_needs_examples_to_choose_by():
    assert message(changed('training.evaluate_every', 5)) == (
        'data.validation is 0; it must be at least 1 if training.evaluate_every is not 0.'
    )


@pytest.mark.parametrize(
    'field, value, text',
    [
        ('model.name', 'smollm2-135', "Unknown model 'smollm2-135': did you mean smollm2-135m?"),
        (
            'model.dtype',
            'bfloat',
            "Unknown model.dtype 'bfloat': did you mean bfloat16 or float32?",
        ),
        (
            'model.attention',
            'flash',
            "Unknown model.attention 'flash': did you mean splash?",
        ),
        (
            'optimizer.schedule',
            'cosinus',
            "Unknown optimizer.schedule 'cosinus': did you mean cosine?",
        ),
        (
            'adapter.shared_rnak',
            3,
            "Unknown field of adapter 'shared_rnak': did you mean shared_rank?",
        ),
        ('model.widht', 3, "Unknown field of model 'widht'"),
        ('method', 'malroa', "Unknown method 'malroa': did you mean malora"),
        ('data.template', 'chatm', "Unknown template 'chatm': did you mean chatml"),
        (
            'data.tasks',
            ('chain_sun',),
            "Unknown task in data.tasks 'chain_sun': did you mean chain_sum",
        ),
        (
            'adapter.frozen',
            ('down',),
            "Unknown parameter in adapter.frozen 'down': did you mean shared_down",
        ),
        ('data.taks', 3, "Unknown field of data 'taks': did you mean tasks?"),
        (
            'optimizer.learning_rat',
            3,
            "Unknown field of optimizer 'learning_rat': did you mean learning_rate?",
        ),
        ('training.step', 3, "Unknown field of training 'step': did you mean steps?"),
        (
            'evaluation.batch',
            3,
            "Unknown field of evaluation 'batch': did you mean batch_size?",
        ),
        ('sed', 3, "Unknown field of config 'sed': did you mean seed?"),
    ],
)
def test_unknown_names(field, value, text):
    assert message(changed(field, value)).startswith(text[:-1])


@pytest.mark.parametrize(
    'field',
    [
        *('seed', 'method', 'model', 'adapter', 'evaluation'),
        *('model.name', 'model.weights', 'adapter.rank', 'data.tasks', 'training.steps'),
    ],
)
def test_missing_fields(field):
    config = plain()
    *path, last = field.split('.')
    del (config[path[0]] if path else config)[last]
    assert (
        message(config) == f'{"config" if not path else path[0]}.{last} is missing from the config.'
    )


FILES = ('help=a.jsonl', 'b.csv')


@pytest.mark.parametrize(
    'changes, text',
    [
        (
            {'tasks': ()},
            "data.tasks and data.files are both empty; name a task, or a file: ('mine.jsonl',).",
        ),
        ({'tasks': ('gcd', 'gcd')}, "data.tasks and data.files name 'gcd' twice."),
        ({'files': ('gcd=a.csv',)}, "data.tasks and data.files name 'gcd' twice."),
        (
            {'files': FILES, 'weights': (1.0, 1.0)},
            'data.weights is (1.0, 1.0); it must be empty, or one positive number per task '
            '(gcd, help, b).',
        ),
        (
            {'files': FILES, 'max_per_task': 0},
            'data.max_per_task is 0; it must be at least 1.',
        ),
        (
            {'files': FILES, 'tasks': (), 'max_per_task': -1},
            'data.max_per_task is -1; it must be at least 0.',
        ),
        ({'files': ('a.txt',)}, 'a.txt has an unsupported type'),
    ],
    ids=['nothing', 'twins', 'twins_of_both', 'weights', 'all_of_a_task', 'negative', 'kind'],
)
def test_mistakes_in_tasks_and_files(changes, text):
    config = plain()
    config['data'] |= {'tasks': ('gcd',)} | changes
    assert message(config).startswith(text)


def test_tasks_and_files_together():
    config = plain()
    config['data'] |= {'tasks': ('gcd',), 'files': FILES, 'weights': (1.0, 2.0, 3.0)}
    assert [task.name for task in run_config(config).data.file_tasks] == ['help', 'b']


def test_the_shape_of_the_weights(tiny_weights):
    config = plain()
    config['model'] |= {'name': 'auto', 'weights': str(tiny_weights)}
    run = run_config(config)
    assert run.model == preset('tiny') and run.weights == str(tiny_weights)
    config['model'] |= {'weights': ''}
    assert message(config).startswith("model.weights is ''; it must be a GGUF file, ")
    config['model'] |= {'name': 'auot'}
    assert message(config) == "Unknown model 'auot': did you mean auto?"


def test_lists_become_tuples():
    config = plain()
    expected = run_config(config)
    config['data']['tasks'] = list(config['data']['tasks'])
    config['adapter']['targets'] = list(config['adapter']['targets'])
    assert run_config(config) == expected


def test_the_config_is_not_changed():
    config = plain()
    run_config(config)
    assert config == plain()


# Files of configs/.


def filled(name: str, *argument: str):
    """Return a config as plain dicts, with a file if it needs the user's own."""
    config = importlib.import_module(f'configs.{name}').get_config(*argument).to_dict()
    if not config['data']['tasks']:
        config['data']['files'] = FILES
    return config


@pytest.mark.parametrize('method_name', METHOD_NAMES)
def test_base_config_has_the_settings_of_the_method(method_name):
    config = base_config(method_name).adapter.to_dict()
    expected = method(method_name)
    assert dataclasses.asdict(settings_of(expected)) == config


@pytest.mark.parametrize('method_name', METHOD_NAMES)
def test_alpha_follows_an_overridden_rank(method_name):
    config = base_config(method_name)
    config.adapter.rank = 5
    assert config.adapter.alpha == 10.0
    config.adapter.alpha = 3.0
    assert config.adapter.alpha == 3.0


@pytest.mark.parametrize('method_name', METHOD_NAMES)
@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_builds_a_model(name, method_name):
    config = filled(name, method_name)
    scored_only = ('inter_domain', *BENCHMARKS)
    if name in scored_only and method_name == 'mtl_lora':
        # The adapter has no parameters for tasks that are only scored.
        with pytest.raises(
            UserError, match=r'evaluation.tasks is .* it must be \(\) or tasks that'
        ):
            run_config(config)
        config['evaluation']['tasks'] = ()
    run = run_config(config)
    assert isinstance(run, RunConfig)
    assert run.method == method_name
    named = dataclasses.asdict(settings_of(with_tasks(method(method_name), run.adapter.tasks)))
    own = dataclasses.asdict(settings_of(run.adapter))
    changes = {k for k, v in own.items() if v != named[k]}
    recipe = {'rank', 'shared_rank', 'alpha', 'targets'}
    assert changes <= (recipe if name in BENCHMARKS else {'beta'}) or name == 'intra_domain_small'
    variables = nn.unbox(abstract_variables(Decoder(run.model, run.adapter)))
    assert trees.count(variables['adapter']) > 10**5


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_has_a_recipe(name):
    module = importlib.import_module(f'configs.{name}')
    assert module.__doc__
    run_config(filled(name))


def test_title_tells_what_differs_from_the_named_method():
    assert run_config(plain()).title == 'malora on smollm2-135m'
    title = run_config(changed('adapter.dropout', 0.1)).title
    assert title == 'malora (dropout=0.1) on smollm2-135m'


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        (
            {'tasks': ('boolqq',)},
            "Unknown task in data.tasks 'boolqq': did you mean boolq or openbookqa?",
        ),
        (
            {'tasks': ('boolq', 'gcd'), 'template': 'bare'},
            "data.template is 'bare'; it must be 'plain', 'chatml' or 'chat' for gcd, whose "
            'questions need a prompt template.',
        ),
        (
            {'tasks': ('boolq',), 'template': 'plain'},
            "data.template is 'plain'; it must be 'bare', 'chatml' or 'chat' for public datasets, "
            'whose prompts are complete.',
        ),
        (
            {'tasks': ('boolq',), 'task_settings': ('gsm8k.shots=0',)},
            "Unknown dataset in data.task_settings 'gsm8k': known are boolq.",
        ),
        ({'size_exponent': 1.5}, 'data.size_exponent is 1.5; it must be from 0 to 1.'),
        (
            {'tasks': ('gcd', 'boolq'), 'weights': (1.0, 2.0), 'size_exponent': 1.0},
            'data.size_exponent is 1.0; it must be 0 if data.weights are given.',
        ),
    ],
)
def test_mistakes_in_public_datasets(changes, text):
    config = plain()
    config['data'] |= changes
    assert message(config) == text


def test_mistakes_in_what_is_scored():
    config = plain()
    config['evaluation']['tasks'] = ('gsm8',)
    assert message(config).startswith("Unknown task in evaluation.tasks 'gsm8': did you mean gsm8k")
    config['evaluation'] |= {'tasks': ('gsm8k', 'chain_sum'), 'samples': 4}
    assert message(config) == (
        'evaluation.temperature is 0.0; it must be positive if evaluation.samples is more than 1.'
    )
    config['evaluation']['samples'] = 1
    assert run_config(config).public_datasets == ['gsm8k']
    # A file may have a dataset's name, which then refers to the file.
    config['data']['files'] = ('gsm8k=mine.jsonl',)
    assert run_config(config).public_datasets == []


@pytest.mark.parametrize('arg', ['lora,', 'lora,task=', 'lora,boolq', 'lora,task'])
def test_an_argument_that_is_no_task_is_refused(arg):
    with pytest.raises(UserError, match=r'must be task=NAME, such as :lora,task=gsm8k\.$'):
        importlib.import_module('configs.intra_domain').get_config(arg)


def test_one_task_alone():
    config = importlib.import_module('configs.inter_domain').get_config('lora,task=arc_easy')
    assert (config.data.tasks, config.evaluation.tasks) == (('alpaca_gpt4',), ('arc_easy',))
    with pytest.raises(UserError, match=r"^Unknown task 'metamathqa'"):
        importlib.import_module('configs.inter_domain').get_config('lora,task=metamathqa')
