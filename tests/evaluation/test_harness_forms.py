"""The form `lm_eval` scores like the tasks of the harness: same rows, and same score of each."""

import json
import os
import pathlib

import numpy as np
import pytest
import yaml

# lm_eval reads these variables on import.
os.environ['HF_HUB_OFFLINE'] = os.environ['HF_DATASETS_OFFLINE'] = '1'
lm_eval = pytest.importorskip('lm_eval', reason="needs the extra 'harness'")

from lm_eval.tasks import TaskManager  # noqa: E402

from experiments import harness as command  # noqa: E402
from malora_jax.data import dataset_task, get_template, open_store  # noqa: E402
from malora_jax.data.datasets import get_dataset, get_form  # noqa: E402
from malora_jax.data.datasets.bbh import DESCRIPTIONS  # noqa: E402
from malora_jax.data.file_rows import Row  # noqa: E402
from malora_jax.evaluation.harness import HarnessModel, LoadedModel  # noqa: E402
from malora_jax.evaluation.runner import EvalModel, answer_held_out  # noqa: E402
from malora_jax.files import write_json_lines  # noqa: E402
from malora_jax.models.generate import Generator  # noqa: E402
from tests.helpers.benchmark_rows import sample_row  # noqa: E402
from tests.helpers.tiny_gguf import write_tiny_gguf  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compile_quickly')]

TASKS = pathlib.Path(lm_eval.__file__).parent / 'tasks'
# File of the harness's task, by our name of the dataset.
FILES = {
    'arc_easy': 'arc/arc_easy.yaml',
    'piqa': 'piqa/piqa.yaml',
    'openbookqa': 'openbookqa/openbookqa.yaml',
    'boolq': 'super_glue/boolq/default.yaml',
    'siqa': 'siqa/siqa.yaml',
    'hellaswag': 'hellaswag/hellaswag.yaml',
    'winogrande': 'winogrande/default.yaml',
    'mmlu': 'mmlu/default/mmlu_abstract_algebra.yaml',
}
LETTERED = {'text': ['it is the', 'of', 'on the other side of it', 'nobody'], 'label': [*'ABCD']}
ROWS = {
    'arc_easy': [
        {'question': 'Where is the world?', 'choices': LETTERED, 'answerKey': 'C'},
        {'question': 'And then?', 'choices': LETTERED, 'answerKey': 'A'},
    ],
    'piqa': [
        {'goal': 'To see the end of it, ', 'sol1': 'look ', 'sol2': 'go  there', 'label': 1},
        {'goal': 'the', 'sol1': 'it', 'sol2': 'and then the end of it was here. ', 'label': 0},
        {'goal': 'no', 'sol1': 'a long way on the other side of it', 'sol2': 'to', 'label': 1},
    ],
    'openbookqa': [
        {'question_stem': 'A sheep is in the', 'choices': LETTERED, 'answerKey': 'D'},
        {'question_stem': 'They were', 'choices': LETTERED, 'answerKey': 'B'},
    ],
    'boolq': [
        {'passage': 'Tea -- Tea is a drink.', 'question': 'is tea a drink', 'answer': True},
        {'passage': 'The end of it.', 'question': 'was that the end', 'answer': False},
    ],
    'siqa': [
        {'context': 'Ann saw it. ', 'question': 'Why?', 'label': '2'}
        | {'answerA': 'she was there', 'answerB': 'the', 'answerC': 'in the end it was '},
        {'context': 'Bob ran.', 'question': 'And then?', 'label': '3'}
        | {'answerA': 'he was', 'answerB': 'it', 'answerC': 'it'},
    ],
    'hellaswag': [
        sample_row('hellaswag'),
        {
            'activity_label': 'Travel',
            'ctx_a': '[header] How to see the world [title] Go there. [step] It is on the other '
            'side of it. [title] Then look.',
            'ctx_b': '',
            'endings': ['[step] It  was the end.', 'No [substeps] of it.', 'the', ' [title] A.'],
            'label': '0',
        },
        {
            'activity_label': 'Canoeing',
            'ctx_a': 'Two of them are in it.',
            'ctx_b': 'the other one, in the USA,',
            'endings': ['is.', 'was at the end of it and of them all.', 'are', 'no'],
            'label': '2',
        },
    ],
    'winogrande': [
        sample_row('winogrande'),
        {
            'sentence': 'It was the end of it, and _  was in the other one.',
            'option1': 'the world',
            'option2': 'it',
            'answer': '1',
        },
        {'sentence': '_ was there.', 'option1': 'He', 'option2': 'The end ', 'answer': '2'},
    ],
    'mmlu': [
        {'question': f' {text} ', 'subject': 'abstract_algebra', 'answer': answer}
        | {'choices': ['it', 'the end', 'the end', 'nobody of them']}
        for text, answer in [('Which one?', 2), ('Where was it?', 0), ('When?', 3)]
    ],
}
SHOTS = [
    {'question': f'What is {n} + 1?', 'subject': subject, 'answer': n % 4}
    | {'choices': [f'{n}', f'{n + 1}', 'it', 'the']}
    for n in range(7)
    for subject in ('anatomy', 'abstract_algebra')
]


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> LoadedModel:
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return LoadedModel(*command.load_model(model='tiny', weights=str(path)))


def their_rows(name: str) -> list[dict]:
    """Return the rows with the columns of the repository that the harness reads."""
    if name == 'boolq':
        return [{**row, 'label': int(row['answer'])} for row in ROWS[name]]
    return ROWS[name]


def run_harness(model: LoadedModel, name: str, folder: pathlib.Path) -> list[dict]:
    """Run the harness's own task, whose rows come from local files."""
    # All files must have the same columns.
    shots = 'shots' if name == 'mmlu' else 'theirs'
    files = {'rows': f'{folder}/theirs.jsonl', 'shots': f'{folder}/{shots}.jsonl'}
    splits = {'training_split': None, 'validation_split': None, 'test_split': 'rows'}
    splits['fewshot_split'] = 'shots' if name == 'mmlu' else None
    task = {
        'include': str(TASKS / FILES[name]),
        'task': f'ours_{name}',
        'dataset_path': 'json',
        'dataset_name': None,
        'dataset_kwargs': {'data_files': files, 'cache_dir': f'{folder}/cache'},
        **splits,
    }
    (folder / 'task.yaml').write_text(json.dumps(task))
    found = lm_eval.simple_evaluate(
        model=HarnessModel(model, batch_size=4),
        tasks=[f'ours_{name}'],
        num_fewshot=5 if name == 'mmlu' else None,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    return found['samples'][f'ours_{name}']


@pytest.mark.parametrize('name', FILES)
def test_scores_are_those_of_the_harness(model, name, tmp_path):
    write_json_lines(tmp_path / 'test.jsonl', ROWS[name])
    write_json_lines(tmp_path / 'theirs.jsonl', their_rows(name))
    write_json_lines(tmp_path / 'train.jsonl', SHOTS)
    # The harness has one dataset for each subject of MMLU.
    write_json_lines(tmp_path / 'shots.jsonl', SHOTS[1::2])
    theirs = run_harness(model, name, tmp_path)
    splits = ('train', 'test') if name == 'mmlu' else ('test',)
    store = open_store(str(tmp_path), [f'{name}/{s}={tmp_path}/{s}.jsonl' for s in splits])
    task = dataset_task(name, 'lm_eval', [], store, needs_train_split=False)
    split = task.split(seed=0, max_per_task=0, held_out=0)
    generator = Generator(model.model, model.tokenizer.eos_id, batch_size=4, max_new_tokens=8)
    eval_model = EvalModel(generator, model.variables, model.tokenizer, get_template('bare'))
    ours = answer_held_out(eval_model, [split], 'test')
    assert len(ours) == len(theirs) == len(ROWS[name])
    for example, answer, sample in zip(split.held_out, ours, theirs, strict=True):
        texts = [prompt + option for prompt, option in sample['arguments']]
        options = example.metadata['options']
        prompts = example.metadata.get('prompts', [example.question] * len(options))
        # The harness asks BoolQ with 'no' first.
        own = [prompt + option for prompt, option in zip(prompts, options, strict=True)]
        assert texts == (own[::-1] if name == 'boolq' else own)
        assert answer.score == sample['acc']
        if 'acc_norm' in sample:
            assert answer.more['accuracy_normalized'] == sample['acc_norm']
    assert np.mean([answer.score for answer in ours]) == np.mean([s['acc'] for s in theirs])


class TaskLoader(yaml.SafeLoader):
    """Loader of task files; functions that a file names are not needed."""


TaskLoader.add_constructor('!function', lambda loader, node: None)


@pytest.mark.parametrize('task', DESCRIPTIONS)
def test_questions_of_bbh_are_those_of_the_harness(task):
    path = TASKS / 'bbh' / 'zeroshot' / f'{task}.yaml'
    theirs = yaml.load(path.read_text('utf-8'), TaskLoader)
    name = f'bbh_{task}'
    row = sample_row(name)
    asked = get_form('lm_eval')(name, get_dataset(name).parse(Row('a', row)))
    text = theirs['description'] + theirs['doc_to_text'].replace('{{input}}', row['input'])
    assert (asked.question, asked.answer) == (text, f' {row["target"]}')
    assert theirs['dataset_name'] == get_dataset(name).config
