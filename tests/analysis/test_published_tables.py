"""Tables of other papers: their numbers, and the rows that runs belong to."""

import statistics

import pytest

from configs import code_small, commonsense, commonsense_small, math_small
from malora_jax.analysis.page import to_markdown
from malora_jax.analysis.report import write_report
from malora_jax.runs.paper import PAPER_TABLES
from malora_jax.runs.published import PUBLISHED_TABLES, TABLES
from tests.helpers.finished_runs import write_finished_run


def test_all_tables_have_names_of_their_own():
    assert len(TABLES) == len(PAPER_TABLES) + len(PUBLISHED_TABLES)


@pytest.mark.parametrize('name', PUBLISHED_TABLES)
def test_averages_are_those_of_the_scores(name):
    for row in PUBLISHED_TABLES[name].rows.values():
        assert row.scores.keys() == {*PUBLISHED_TABLES[name].tasks}
        assert row.average == pytest.approx(statistics.mean(row.scores.values()), abs=0.08)


def test_a_run_belongs_to_the_row_of_its_method():
    table = TABLES['commonsense']
    for config in (commonsense, commonsense_small):
        assert table.row_of(config.get_config('hydralora').to_dict()) == 'hydralora'
        assert table.row_of(config.get_config('malora').to_dict()) is None


@pytest.mark.parametrize(
    'name, config, method, row',
    [
        ('commonsense', commonsense_small, 'lora', 'LoRA r = 64'),
        ('math', math_small, 'lora', 'LoRA r = 32'),
        ('code', code_small, 'comol', 'CoMoL r = 16'),
    ],
)
def test_runs_stand_next_to_published_rows(tmp_path, name, config, method, row):
    write_finished_run(tmp_path / 'runs' / method, config.get_config(method), 20)
    write_finished_run(tmp_path / 'runs' / 'malora', config.get_config('malora'), 30)
    sections = write_report([tmp_path / 'runs'], tmp_path / 'out', table=name, routing=False)
    text = to_markdown('title', sections)
    assert text.index(f'| {row} |') < text.index('| *published (')
    table = TABLES[name]
    assert f'The numbers of the paper, for {table.base}, are in italics' in text
    for other in table.rows.values():
        assert f'*{other.average:g}*' in text
        assert (f'| *{other.label}, published (' in text) == (other.label != row)
    assert '| malora' in text
