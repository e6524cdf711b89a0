"""Public datasets as tasks: trained, validation and held-out examples, and their form."""

import collections
import contextlib
import dataclasses
import json

import numpy as np
import pytest

from malora_jax.data import (
    DatasetTask,
    Store,
    dataset_settings,
    dataset_task,
    describe_split,
    get_dataset,
    get_template,
    is_public_dataset,
    measure_examples,
    packed_batches,
    stored_items,
    train_iterator,
)
from malora_jax.data.tasks import question_key
from malora_jax.errors import UserError
from tests.helpers.data import ByteTokenizer, as_bytes, take, unpack

# Several rows have the same question.
TRAIN = [{'question': f'Double {n % 50}.', 'answer': f'{n}.\n#### {n}'} for n in range(60)]
TEST = [{'question': f'Triple {n}.', 'answer': f'So.\n#### {3 * n}'} for n in range(20)]
MEANINGS = ['name[A]', 'name[B]', 'name[A]', 'name[C]', 'name[B]', 'name[A]']
REFERENCES = [
    {'meaning_representation': meaning, 'human_reference': f'Text {number}.'}
    for number, meaning in enumerate(MEANINGS)
]
PROGRAM = {
    'prompt': 'def one():\n',
    'canonical_solution': '    return 1\n',
    'test': 'def check(candidate):\n    assert candidate() == 1\n',
    'entry_point': 'one',
}
FILES = {
    'gsm8k/train': TRAIN,
    'gsm8k/test': TEST,
    'e2e_nlg/train': REFERENCES,
    'e2e_nlg/test': REFERENCES,
    'humaneval/test': [PROGRAM],
    'metamathqa/train': [{'query': f'q{n}', 'response': f'r{n}'} for n in range(9)],
    'mgsm_en/test': [{'question': 'One?', 'answer': None, 'answer_number': 1}],
}


@pytest.fixture(scope='module')
def filled(tmp_path_factory) -> Store:
    """Store with all these files; the first test that needs a dataset prepares it."""
    directory = tmp_path_factory.mktemp('data')
    sources = []
    for place, rows in FILES.items():
        path = directory / f'{place.replace("/", "-")}.jsonl'
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        sources.append(f'{place}={path}')
    return Store(directory / 'store', tuple(sources))


def split(filled, name='gsm8k', seed=0, max_per_task=0, held_out=0, validation=0, **settings):
    form, own = settings.pop('form', 'completion'), settings.pop('settings', ())
    task = dataset_task(name, form, own, filled, **settings)
    return task.split(seed, max_per_task, held_out, validation)


def mistake(call, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **settings)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def questions(examples) -> list[str]:
    return [example.question for example in examples]


@pytest.fixture
def reads(monkeypatch) -> collections.Counter:
    """Counter of how often each item was read from disk."""
    counter: collections.Counter = collections.Counter()
    read = stored_items.StoredItems.__getitem__

    def counted(self, index):
        counter['items'] += 1
        return read(self, index)

    monkeypatch.setattr(stored_items.StoredItems, '__getitem__', counted)
    return counter


# Training examples.


def test_all_of_the_training_split_is_trained_on_once(filled):
    train = split(filled, needs_test_split=False).train
    assert sorted(example.answer for example in train) == sorted(f' {r["answer"]}' for r in TRAIN)
    assert questions(train) != [f'Question: {row["question"]}\nAnswer:' for row in TRAIN]


def test_other_seeds_sample_other_rows(filled):
    samples = [split(filled, seed=seed, max_per_task=10).train for seed in (0, 0, 1)]
    assert [len(sample) for sample in samples] == [10, 10, 10]
    answers = [{example.answer for example in sample} for sample in samples]
    assert answers[0] == answers[1] != answers[2]
    assert len(answers[0] | answers[2]) > 12


def test_a_larger_sample_holds_the_smaller_one(filled):
    small, large = (split(filled, max_per_task=size).train for size in (10, 20))
    assert list(large)[:10] == list(small)


@pytest.mark.parametrize('most', [0, 15])
def test_validation_questions_are_never_trained_on(filled, most):
    found = split(filled, validation=25, max_per_task=most, needs_test_split=False)
    kept = {question_key(question) for question in questions(found.validation)}
    assert len(kept) == len(found.validation) == 25
    asked = [question_key(f'Question: {row["question"]}\nAnswer:') for row in TRAIN]
    others = [question for question in asked if question not in kept]
    assert {*asked} > kept and len(others) < 60 - 25, 'some questions are in two rows'
    trained = [question_key(question) for question in questions(found.train)]
    if most:
        assert {*trained} < {*others} and len(trained) == most
    else:
        assert sorted(trained) == sorted(others)
    assert questions(split(filled, seed=1, validation=25).validation) != questions(found.validation)


@pytest.mark.parametrize('validation', [31, 50, 60, 1000])
def test_validation_leaves_half(filled, validation):
    assert mistake(split, filled, validation=validation) == (
        f"Task 'gsm8k' has 60 training examples; data.validation = {validation} must leave half of "
        'them to train on.'
    )


def test_validation_on_rows_that_all_ask_the_same(filled):
    """All three questions of E2E's six rows would be kept for validation, so none would be left."""
    text = "Task 'e2e_nlg' has 6 training examples; data.validation = 3 must leave half of them"
    assert mistake(split, filled, 'e2e_nlg', validation=3).startswith(text)
    assert len(split(filled, 'e2e_nlg', validation=2).validation) == 2


def test_training_examples_are_read_when_they_are_drawn(filled, reads):
    found = split(filled, needs_test_split=False)
    opened = reads['items']
    assert opened <= 2, 'the ends, to see that the file is whole'
    found.train[3]
    assert reads['items'] == opened + 1
    assert len(found.train) == 60 and reads['items'] == opened + 1


def test_a_sample_with_validation_reads_no_more_than_it_must(filled, reads):
    split(filled, needs_test_split=False, validation=5, max_per_task=5)
    assert reads['items'] < 30


# Scored questions.


def test_held_out_questions_are_the_test_split_in_its_order(filled):
    found = split(filled, settings=('gsm8k.shots=0',)).held_out
    assert questions(found) == [f'Question: {row["question"]}\nAnswer:' for row in TEST]
    assert [example.metadata['answers'] for example in found] == [
        (f' {row["answer"]}',) for row in TEST
    ]


def test_a_sample_of_them_is_the_same_for_every_seed(filled):
    samples = [questions(split(filled, seed=seed, held_out=7).held_out) for seed in range(4)]
    assert all(sample == samples[0] for sample in samples) and len(samples[0]) == 7
    everything = questions(split(filled, held_out=1000).held_out)
    assert samples[0] != everything[:7], 'a sample, not the beginning'
    assert [q for q in everything if q in samples[0]] == samples[0], 'in the order of the file'
    more = questions(split(filled, held_out=12).held_out)
    assert {*samples[0]} < {*more}


def test_references_to_one_meaning_are_one_question(filled):
    found = split(filled, 'e2e_nlg')
    assert questions(found.held_out) == [
        f'Question: Describe the restaurant with these attributes: name[{letter}]\nAnswer:'
        for letter in 'ABC'
    ]
    assert [example.metadata['answers'] for example in found.held_out] == [
        (' Text 0.', ' Text 2.', ' Text 5.'),
        (' Text 1.', ' Text 4.'),
        (' Text 3.',),
    ]
    assert len(found.train) == 6, 'each text is trained on'


def test_shots_stand_in_front_of_held_out_questions_only(filled):
    found = split(filled, seed=3, validation=4, settings=('gsm8k.shots=2',))
    *shots, last = found.held_out[0].question.split('\n\n')
    assert last == 'Question: Triple 0.\nAnswer:'
    solved = {f'Question: {row["question"]}\nAnswer: {row["answer"]}' for row in TRAIN}
    assert len(shots) == 2 and {*shots} < solved and shots[0] != shots[1]
    assert all(q.startswith('\n\n'.join(shots) + '\n\n') for q in questions(found.held_out))
    for example in [*found.train, *found.validation]:
        assert example.question.count('Question:') == 1
    assert found.task.scoring.shots == 2


def test_shots_are_the_same_for_every_seed(filled):
    """GSM8K has eight shots by default."""
    samples = [questions(split(filled, seed=seed).held_out) for seed in (0, 1)]
    assert samples[0] == samples[1] and samples[0][0].count('Question:') == 9


def test_more_shots_than_there_are_rows(filled):
    assert mistake(split, filled, settings=('gsm8k.shots=61',)) == (
        "Task 'gsm8k' has 60 training examples, too few for 61 shots."
    )


def test_shots_need_a_training_split(filled):
    assert mistake(
        split, filled, 'mgsm_en', needs_train_split=False, settings=('mgsm_en.shots=1',)
    ) == (
        f"{filled.directory}/malora_mgsm_en/1.0.0 has no split 'train', only test: name a file for "
        "it in data.sources, 'mgsm_en/train=PATH'."
    )
    assert mistake(
        split, filled, 'humaneval', needs_train_split=False, settings=('humaneval.shots=1',)
    ) == (
        'data.task_settings: humaneval has no training split to take shots from; its shots must '
        'be 0.'
    )


def test_only_scored(filled):
    found = split(filled, 'humaneval', needs_train_split=False)
    assert not found.train and not found.validation and found.num_available == 0
    assert questions(found.held_out) == ['def one():']
    assert (found.task.scoring.metric, found.task.scoring.rule) == ('pass@1', 'code')


def test_only_trained_on(filled):
    found = split(filled, 'metamathqa', needs_test_split=False, validation=2)
    assert found.held_out == [] and found.num_available == 9
    assert (len(found.train), len(found.validation)) == (7, 2)
    size = measure_examples('metamathqa', found.train, ByteTokenizer(), get_template('bare'), 99)
    assert describe_split(found, size) == (
        f'metamathqa: train={filled.directory.parent}/metamathqa-train.jsonl, 7 examples of '
        f'{size.tokens} tokens to train on, 2 questions for validation.'
    )


def test_a_split_that_a_dataset_does_not_have_is_told_before_any_download(tmp_path):
    empty = Store(tmp_path / 'store')
    assert mistake(split, empty, 'humaneval') == (
        "Task 'humaneval' has no training split: name it in evaluation.tasks, not in data.tasks."
    )
    assert mistake(split, empty, 'metamathqa') == (
        "Task 'metamathqa' has no test split: list the tasks to score in evaluation.tasks, "
        'without this one.'
    )
    settings = {'needs_train_split': False, 'settings': ('humaneval.shots=1',)}
    assert 'shots must be 0' in mistake(split, empty, 'humaneval', **settings)
    assert not empty.directory.exists()


def test_the_origin_is_what_is_locked(filled):
    assert split(filled).origin == {'dataset': filled.lock_entry(get_dataset('gsm8k'))}


# Batches.


def batches(found, **settings):
    return train_iterator(
        [found],
        ByteTokenizer(),
        get_template('bare'),
        sequence_length=128,
        batch_size=2,
        shares=[1.0],
        seed=0,
        **settings,
    )


def test_an_epoch_of_batches_has_every_example(filled):
    found = split(filled, 'metamathqa', needs_test_split=False)
    examples = [(example, 0) for example in found.train]
    packed = packed_batches(examples, ByteTokenizer(), get_template('bare'), 128, 2, False)
    expected, drawn = ({*as_bytes(unpack(part))} for part in (packed, take(batches(found), 8)))
    assert drawn == expected and len(drawn) == 9


def test_workers_draw_the_same(filled):
    found = split(filled, needs_test_split=False)
    with contextlib.closing(batches(found, workers=1)) as helped:
        for alone, other in zip(take(batches(found), 5), take(helped, 5), strict=True):
            for key in alone:
                np.testing.assert_array_equal(alone[key], other[key])


# Settings.


def test_which_names_are_public_datasets():
    assert is_public_dataset('gsm8k') and not is_public_dataset('chain_sum')


def test_forms_and_shots_of_one_dataset():
    settings = ('gsm8k.shots=0', 'piqa.form=sectioned', 'gsm8k.form=sectioned')
    assert dataset_settings('completion', settings) == {
        'gsm8k': {'shots': '0', 'form': 'sectioned'},
        'piqa': {'form': 'sectioned'},
    }
    tasks = [dataset_task(name, 'completion', settings) for name in ('gsm8k', 'piqa', 'boolq')]
    assert [(task.form, task.shots) for task in tasks] == [
        ('sectioned', 0),
        ('sectioned', None),
        ('completion', None),
    ]
    assert [task.scoring.shots for task in tasks] == [0, 0, 0]
    assert [task.scoring.rule for task in tasks] == ['number', 'letter', 'likelihood']
    assert [task.scoring.metric for task in tasks] == ['accuracy'] * 3
    assert dataset_task('gsm8k', 'completion', ()).scoring.shots == 8


@pytest.mark.parametrize(
    'setting, expected',
    [
        ('gsm8k', "data.task_settings holds 'gsm8k'; write 'NAME.FIELD=VALUE', such as 'gsm8k.sho"),
        ('gsm8k.shots', "data.task_settings holds 'gsm8k.shots'; write"),
        ('shots=3', "data.task_settings holds 'shots=3'; write"),
        ('gsm9k.shots=3', "Unknown dataset 'gsm9k': did you mean gsm8k"),
        ('chain_sum.shots=3', "Unknown dataset 'chain_sum': "),
        ('gsm8k.shot=3', "Unknown field in data.task_settings 'shot': did you mean shots?"),
        ('gsm8k.form=complete', "Unknown form 'complete': did you mean completion?"),
        (
            'gsm8k.shots=-1',
            "data.task_settings: 'gsm8k.shots=-1': the number of shots must be a whole number, 0 "
            'or more.',
        ),
        ('gsm8k.shots=', "data.task_settings: 'gsm8k.shots=': the number of shots must be a whole"),
        ('gsm8k.shots=two', "'gsm8k.shots=two': the number of shots must be a whole number, 0 or"),
    ],
)
def test_settings_that_cannot_be(setting, expected):
    assert expected in mistake(dataset_settings, 'completion', [setting])


def test_a_setting_that_is_there_twice():
    assert mistake(dataset_settings, 'completion', ['gsm8k.shots=1', 'gsm8k.shots=2']) == (
        'data.task_settings sets gsm8k.shots twice; remove one of the entries.'
    )


def test_an_unknown_form():
    assert mistake(dataset_settings, 'complete', []) == (
        "Unknown form 'complete': did you mean completion?"
    )


def test_the_scorer_of_a_task_reads_what_the_model_says(filled):
    found = split(filled)
    example = found.held_out[4]
    assert found.task.scoring.score('As 3 * 4 = 12,\n#### 12', example) == 1.0
    assert found.task.scoring.score('#### 13', example) == 0.0


def test_a_task_is_the_same_wherever_it_is_made():
    task = dataset_task('gsm8k', 'completion', ())
    assert task == DatasetTask(get_dataset('gsm8k'), 'completion')
    assert dataclasses.replace(task, shots=0) != task
