"""Example answers: which are shown, how they are shortened, and how they are escaped."""

import json
import pathlib

from configs import intra_domain_small
from malora_jax.analysis.page import Fold, to_html, to_markdown
from malora_jax.analysis.sections.answers import answers_section
from malora_jax.files import read_json_lines
from malora_jax.runs import read_runs, seed_groups
from tests.helpers.finished_runs import write_finished_run


def write_run(directory: pathlib.Path, change, correct: int = 3, method: str = 'malora') -> None:
    """Write a finished run, and apply a function to each of its answers."""
    write_finished_run(directory, intra_domain_small.get_config(method), correct)
    for when in ('before', 'after'):
        path = directory / f'answers_{when}.jsonl'
        rows = read_json_lines(path)
        for row in rows:
            change(row, when)
        path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


def name_answer(row, when):
    """Let the answer say when it was given, and to what."""
    row['answer'] = f'{when} {row["question"]}'


def sections(directory: pathlib.Path):
    return [*answers_section(seed_groups(read_runs([directory])))]


def test_the_first_right_and_wrong_answers_of_each_task(tmp_path):
    write_run(tmp_path / 'run', name_answer)
    (section,) = sections(tmp_path)
    assert len(section.blocks) == 1 + 5
    table = section.blocks[1]
    assert [*table.head] == ['question', 'expected', 'before', 'after']
    assert [[row[0], *row[2:]] for row in table.rows] == [
        [f'What is {q}?', f'before What is {q}?', f'{verdict}: after What is {q}?']
        for q, verdict in ((0, 'right'), (1, 'right'), (3, 'wrong'), (4, 'wrong'))
    ]


def test_partial_scores_are_in_percent_and_empty_answers_are_marked(tmp_path):
    def change(row, when):
        row['answer'] = ''
        row['score'] = 0.25

    write_run(tmp_path / 'run', change)
    rows = sections(tmp_path)[0].blocks[1].rows
    assert [row[2:] for row in rows] == [['(empty)', '25%: (empty)']] * 2


def test_long_texts_are_cut_with_a_mark(tmp_path):
    write_run(tmp_path / 'run', lambda row, when: row.update(answer='word\n' * 100))
    answer = sections(tmp_path)[0].blocks[1].rows[0][2]
    assert answer == 'word ' * 47 + 'word […]'


def test_texts_are_escaped(tmp_path):
    text = '<script>alert(1)</script> | [a](http://b) `c` *d*'
    write_run(tmp_path / 'run', lambda row, when: row.update(answer=text, expected=text))
    found = sections(tmp_path)
    page = to_html('title', found)
    assert '<script' not in page
    assert '&lt;script&gt;alert(1)&lt;/script&gt; | [a](http://b)' in page
    row = next(line for line in to_markdown('title', found).splitlines() if 'What is' in line)
    assert r'\<script>alert(1)\</script> \| [a]\(http://b) \`c\` \*d\*' in row
    assert row.replace(r'\|', '').count('|') == 5


def test_rows_have_their_answers_in_their_own_block(tmp_path):
    write_run(tmp_path / 'lora', name_answer, method='lora')
    write_run(tmp_path / 'malora', name_answer)
    _, *folds = sections(tmp_path)[0].blocks
    assert all(isinstance(fold, Fold) for fold in folds)
    assert [fold.title for fold in folds] == ['Answers of lora', 'Answers of malora']


def test_published_runs_without_texts_have_no_section(tmp_path):
    write_run(tmp_path / 'run', lambda row, when: row.pop('answer'))
    assert sections(tmp_path) == []
