"""File tasks: settings in the `data` section, and the examples read from the files."""

import dataclasses
import hashlib
import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from malora_jax.data import Example, FileTask, file_digests, file_tasks
from malora_jax.data.file_tasks import parse_pattern, read_examples
from malora_jax.data.scorers import SCORERS
from malora_jax.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Make the temporary directory the current one, because paths are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(*files: str, settings=()) -> list[FileTask]:
    return file_tasks(files, settings, question_field='q', answer_field='a', scorer='exact_match')


def task(path: str = 'a.jsonl', question: str = 'q', answer: str = 'a') -> FileTask:
    return FileTask('mine', path, question, answer, 'exact_match')


def write(here, *objects) -> None:
    (here / 'a.jsonl').write_text('\n'.join(json.dumps(fields) for fields in objects), 'utf-8')


def read(here, *objects, **pattern: str) -> list[tuple[str, str]]:
    write(here, *objects)
    return [(e.question, e.answer) for e in read_examples(task(**pattern), 'a.jsonl').examples]


def message(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert '\n' not in str(caught.value)
    return str(caught.value)


# Settings in the config.


def test_a_task_has_the_name_it_is_given_or_the_file_s():
    assert [(t.name, t.path) for t in named('help=d/a.csv', '~/b.c.TSV', 'd=x=y.jsonl')] == [
        ('help', 'd/a.csv'),
        ('b.c', '~/b.c.TSV'),
        ('d', 'x=y.jsonl'),
    ]


def test_settings_of_one_task():
    settings = ('v1.0.question_field={t}={u}', 'v1.0.scorer=choice', 'b.test_file=t.csv')
    assert named('v1.0=a.csv', 'b.csv', settings=settings) == [
        FileTask('v1.0', 'a.csv', '{t}={u}', 'a', 'choice'),
        FileTask('b', 'b.csv', 'q', 'a', 'exact_match', test_file='t.csv'),
    ]


@pytest.mark.parametrize(
    'files, settings, expected',
    [
        (['=a.csv'], [], "data.files: the task name '' must not be empty or hold a slash."),
        (['x/y=a.csv'], [], "data.files: the task name 'x/y' must not be empty or hold a slash."),
        (
            ['a.json'],
            [],
            'a.json is a .json file; convert it to .jsonl, with one JSON object per line.',
        ),
        (
            ['a.txt'],
            [],
            'a.txt has an unsupported type: the name must end in .jsonl, .csv, .tsv, .parquet.',
        ),
        (
            ['a.csv'],
            ['a.test_file=t.xlsx'],
            't.xlsx has an unsupported type: the name must end in .jsonl, .csv, .tsv, .parquet.',
        ),
        (
            ['a.csv', 'd/a.csv'],
            [],
            "data.files: two tasks have the same name (a, a); write 'OTHER_NAME=PATH'.",
        ),
        (
            ['a.csv'],
            ['scorer=choice'],
            "data.file_settings: 'scorer=choice' is not of the form 'TASK.FIELD=VALUE', such as "
            "'faq.question_field=title'.",
        ),
        (
            ['a.csv'],
            ['a.scorer'],
            "data.file_settings: 'a.scorer' is not of the form 'TASK.FIELD=VALUE', such as "
            "'faq.question_field=title'.",
        ),
        (
            ['help.csv'],
            ['hlep.scorer=choice'],
            "Unknown task in data.file_settings 'hlep': did you mean help?",
        ),
        (
            ['a.csv'],
            ['a.score=choice'],
            "Unknown field in data.file_settings 'score': did you mean scorer?",
        ),
        (
            ['a.csv'],
            ['a.scorer=chioce'],
            "Unknown data.scorer 'chioce': did you mean choice?",
        ),
        (
            ['a.csv'],
            ['a.answer_field={a'],
            "The field pattern '{a' is broken: expected '}' before end of string.",
        ),
        (
            ['a.csv'],
            ['a.answer_field='],
            "The field pattern '' must be the name of a field, or text with names of fields in "
            "braces, such as '{context} {question}'.",
        ),
    ],
)
def test_mistakes_in_a_config(files, settings, expected):
    assert message(named, *files, settings=settings) == expected


@pytest.mark.parametrize('pattern', ['{}', '{a} {}', '{a!r}', '{a:>9}', '{{}}'])
def test_a_pattern_has_names_alone_in_its_braces(pattern):
    assert 'must be the name of a field' in message(parse_pattern, pattern)


# Examples that are read.


def test_examples_with_their_rows(here):
    write(here, {'q': ' Why? ', 'a': '  So.\n', 'x': None}, {'q': 'é', 'a': 'b'})
    assert read_examples(task(), 'a.jsonl') == (
        [
            Example('Why?', '  So.', {'row': 'a.jsonl line 1'}),
            Example('é', 'b', {'row': 'a.jsonl line 2'}),
        ],
        2,
        0,
        'a.jsonl',
    )


def test_a_pattern_joins_fields(here):
    fields = {'the goal': 'Boil {eggs}', 'sol': 'in \\n oil', 'n': 1, 'a': ''}
    pattern = dict(question='{the goal}?\\nA: {sol}{a} {{x}}', answer='{n}{n}')
    assert read(here, fields, **pattern) == [('Boil {eggs}?\nA: in \\n oil {x}', '11')]


def test_numbers_and_truth_are_text(here):
    objects = [{'q': 1.50, 'a': True}, {'q': 10**30, 'a': False}, {'q': -1, 'a': 42}]
    assert read(here, *objects) == [('1.5', 'true'), (f'1{"0" * 30}', 'false'), ('-1', '42')]


def test_numbers_and_truth_in_parquet(here):
    columns = {
        'q': [1.5, 2.0],
        'a': [True, False],
        'd': [Decimal('1.50'), Decimal('2.00')],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), here / 'a.parquet')
    found = read_examples(task('a.parquet', answer='{a} {d}'), 'a.parquet').examples
    assert [(e.question, e.answer) for e in found] == [('1.5', 'true 1.50'), ('2.0', 'false 2.00')]


def test_exact_repetitions_are_left_out_and_counted(here):
    pairs = ['xy', 'xz', 'xy', 'Xy', 'xy']
    write(here, *({'q': q, 'a': f'{a} '} for q, a in pairs))
    examples, rows, duplicates, _ = read_examples(task(), 'a.jsonl')
    assert [(e.question, e.answer) for e in examples] == [('x', 'y'), ('x', 'z'), ('X', 'y')]
    assert (rows, duplicates) == (5, 2)


def test_nothing_is_shown_for_a_short_file(here, capfd):
    read(here, {'q': 'x', 'a': 'y'})
    assert capfd.readouterr() == ('', '')


def test_the_home_directory(here, monkeypatch):
    monkeypatch.setenv('HOME', str(here / 'home'))
    (here / 'home').mkdir()
    (here / 'home' / 'b.csv').write_text('q,a\nx,y\n')
    [example] = read_examples(task('~/b.csv'), '~/b.csv').examples
    assert example.metadata == {'row': f'{here}/home/b.csv line 2'}
    assert list(file_digests([task('~/b.csv')])) == ['~/b.csv']


GOOD = {'q': 'x', 'a': 'y'}
BOTH = dict(question='{q}\\n{r}')
UNKNOWN = 'Unknown {0} {1!r}: {2} To set {0} for one file alone, use data.file_settings.'


@pytest.mark.parametrize(
    'fields, pattern, expected',
    [
        ({'qq': 1, 'a': 'y'}, {}, UNKNOWN.format('question_field', 'q', 'did you mean qq?')),
        ({'q': 'x', 'bcd': 1}, {}, UNKNOWN.format('answer_field', 'a', 'known are bcd, q.')),
        (
            {'q': 'x', 'a': ' \t\n'},
            {},
            "answer_field yields no text, because there is none in 'a'.",
        ),
        ({'q': '', 'a': 'y'}, {}, "question_field yields no text, because there is none in 'q'."),
        (
            {'q': '', 'r': ' ', 'a': 'y'},
            BOTH,
            "question_field yields no text, because there is none in 'q' and 'r'.",
        ),
        ({'q': 'x', 'a': 'y'}, BOTH, UNKNOWN.format('question_field', 'r', 'known are a, q.')),
        ({'q': 'x', 'a': ['y']}, {}, "field 'a' is a list; it must be text or a number."),
        ({'q': {'x': 1}, 'a': 'y'}, {}, "field 'q' is an object; it must be text or a number."),
        ({'q': 'x', 'a': None}, {}, "field 'a' is missing (null); it must be text or a number."),
        (
            {'q': 'x', 'r': None, 'a': 'y'},
            BOTH,
            "field 'r' is missing (null); it must be text or a number.",
        ),
        ({'q': 'x\ud800', 'a': 'y'}, {}, "field 'q' is not UTF-8: save the file as UTF-8."),
    ],
)
def test_mistakes_in_a_row(here, fields, pattern, expected):
    write(here, GOOD | {'r': 'z'}, fields)
    found = message(read_examples, task(**pattern), 'a.jsonl')
    assert found == f'a.jsonl line 2: {expected}'


def test_an_answer_that_could_never_be_right(here):
    write(here, GOOD, GOOD | {'a': '?!'})
    choice = dataclasses.replace(task(), scorer='choice')
    assert message(read_examples, choice, 'a.jsonl') == (
        "a.jsonl line 2: scorer 'choice' scores the row's own answer '?!' as wrong; fix the row, "
        "or use scorer 'exact_match'."
    )


def test_mistakes_in_parquet(here):
    columns = {'q': [b'x'], 'a': [float('nan')]}
    pyarrow.parquet.write_table(pyarrow.table(columns), here / 'a.parquet')
    assert message(read_examples, task('a.parquet'), 'a.parquet') == (
        "a.parquet row 1: field 'q' is of type bytes; it must be text or a number."
    )
    assert message(read_examples, task('a.parquet', question='a'), 'a.parquet') == (
        "a.parquet row 1: field 'a' is missing (null); it must be text or a number."
    )


def test_a_table_without_a_header(here):
    (here / 'a.tsv').write_text(f'{"How many? " * 9}\t18\nWhy?\tSo.\n')
    assert message(read_examples, task('a.tsv'), 'a.tsv') == (
        "a.tsv line 2: Unknown question_field 'q': known are 18, "
        'How many? How many? How many? How many? …. To set question_field for one file alone, use '
        'data.file_settings.'
    )


@pytest.mark.parametrize('content', ['', 'q,a\n'])
def test_no_rows(here, content):
    (here / 'a.csv').write_text(content)
    assert message(read_examples, task('a.csv'), 'a.csv') == 'a.csv has no rows.'


def test_digests(here):
    (here / 'a.jsonl').write_bytes(b'abc')
    (here / 't.csv').write_bytes(b'')
    tasks = named('a.jsonl', 'b=a.jsonl', settings=['b.test_file=t.csv'])
    assert file_digests(tasks) == {
        'a.jsonl': 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
        't.csv': hashlib.sha256().hexdigest(),
    }
    (here / 't.csv').unlink()
    assert message(file_digests, tasks).startswith('There is no data file t.csv (looked for in ')


# Scoring of answers.


@pytest.mark.parametrize(
    'scorer, answer, wrong',
    [('number', 'So #### 18', 'none'), ('rouge_l', 'A dog.', '?!'), ('letter', '(B) a dog', 'dog')],
)
def test_scorers_that_read_an_answer(here, scorer, answer, wrong):
    mine = dataclasses.replace(task(), scorer=scorer)
    write(here, {'q': 'x', 'a': answer})
    [example] = read_examples(mine, 'a.jsonl').examples
    answered = dataclasses.replace(example, metadata={'answers': (answer,)})
    assert [mine.score(said, answered) for said in (answer, wrong)] == [1.0, 0.0]
    write(here, {'q': 'x', 'a': answer}, {'q': 'y', 'a': wrong})
    assert f'scorer {scorer!r} scores the row' in message(read_examples, mine, 'a.jsonl')


def test_each_answer_is_compared_once(monkeypatch):
    seen = []

    def compare(said: str, example: Example) -> float:
        seen.append((example.answer, example.metadata))
        return 0.0

    monkeypatch.setitem(SCORERS, 'choice', compare)
    chosen = dataclasses.replace(task(), scorer='choice')
    chosen.score('x', Example('?', 'four', {'answers': ('four', '4'), 'row': 'line 1'}))
    assert seen == [(a, {'answers': (a,), 'row': 'line 1'}) for a in ('four', '4')]


def test_any_answer_that_the_file_has_is_right():
    example = Example('?', 'four', {'answers': ('four', '4')})
    assert [task().score(said, example) for said in ('four', ' 4', 'five')] == [1.0, 1.0, 0.0]
    choice = FileTask('mine', 'a.csv', 'q', 'a', 'choice')
    assert (choice.scoring.metric, choice.score('(4) is it', example)) == ('choice', 1.0)
