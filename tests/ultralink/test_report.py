"""Reports: statistics of rows that are counted by hand, and counts that add up."""

import asyncio

import pytest
from matplotlib.figure import Figure

from malora_jax.errors import UserError
from malora_jax.ultralink import prune, report, stage
from malora_jax.ultralink.counts import count_conversations, mean_length
from malora_jax.ultralink.stage import ItemOutcome, StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.helpers import WordCounter, write_rows

DIALOGUE = {
    'id': 'fr-1-0',
    'language': 'fr',
    'document': 'un deux trois quatre cinq',
    'data': ['Où est-ce ?', 'À Lyon même', 'Et quoi ?', 'Un deux trois quatre'],
}
ROWS = [
    DIALOGUE,
    {
        'id': 'fr_chat_specific_0',
        'language': 'fr',
        'subset': 'chat_specific',
        'data': ['Lisez.\n<document>\nun deux trois\n</document>\nOù est Lyon ?', 'En France'],
    },
    {'id': 'zh-1', 'language': 'zh', 'subset': 'math', 'data': ['一加一等于几？', '等于二。']},
    {'id': 'en-1', 'language': 'en', 'subset': 'math', 'data': ['One plus one?', 'Two']},
    {'id': 'en-2', 'language': 'en', 'subset': 'code', 'data': ['Print it', 'Like so: print()']},
]


@pytest.fixture
def reported(tmp_path, monkeypatch):
    drawn = {}
    save = Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        drawn['figure'] = figure

    monkeypatch.setattr(Figure, 'savefig', keep)
    source = write_rows(tmp_path / 'rows.jsonl', ROWS)
    config = prune.PruneConfig()
    asyncio.run(STAGES['prune'].run(StageRun(config, [source], tmp_path / 'pruned')))
    inputs, stages = [tmp_path / 'pruned'], [tmp_path / 'pruned']
    text = report.report(inputs, WordCounter(), tmp_path / 'report', stages)
    return text, drawn['figure'], tmp_path


def test_documents_are_not_counted(tmp_path):
    counts = count_conversations([write_rows(tmp_path / 'rows.jsonl', ROWS)], WordCounter())
    assert list(counts) == [
        ('en', 'math'),
        ('en', 'code'),
        ('zh', 'math'),
        ('fr', 'chat_specific'),
    ]
    french = counts['fr', 'chat_specific']
    assert (french.conversations, french.turns) == (2, 3)
    # Words between spaces: 3, 3 and 4 in the questions; 3, 4 and 2 in the answers.
    assert mean_length(french.questions) == pytest.approx(10 / 3)
    assert mean_length(french.answers) == pytest.approx(3)


def test_the_tables(reported):
    text, _, path = reported
    assert (path / 'report' / 'report.md').read_text('utf-8') == text + '\n'
    lines = text.splitlines()
    assert '| en | 0 (10K) | 0 (67K) | 1 (395K) | 1 (186K) | 2 (658K) |' in lines
    assert '| zh | 0 (36K) | 0 (11K) | 1 (32K) | 0 (16K) | 1 (95K) |' in lines
    assert '| all | 2 (147K) | 0 (112K) | 2 (523K) | 1 (250K) | 5 (1,032K) |' in lines
    assert '| fr | chat_specific | 2 | 3 | 6.33 | 3.33 | 3.00 |' in lines
    assert '| en | all | 2 | 2 | 4.50 | 2.50 | 2.00 |' in lines
    assert '| *in the paper* | all | 1,032K | 1,623K | 378.21 | 87.86 | 290.35 |' in lines


def test_the_funnel(reported):
    text, _, _ = reported
    assert '| read | 5 |  |' in text and '| kept | 5 | 100.0% |' in text
    assert 'Rows written: 5.' in text
    assert '| fr chat_specific: kept | 2 |' in text


def test_a_stage_that_dropped_and_is_not_finished(tmp_path):
    source = write_rows(tmp_path / 'rows.jsonl', [{'n': n} for n in range(7)])

    async def process(row):
        if row.fields['n'] == 6:
            raise UserError('broken')
        return (
            ItemOutcome([row.fields, row.fields])
            if row.fields['n'] % 2
            else ItemOutcome((), 'even')
        )

    with pytest.raises(UserError, match='broken'):
        asyncio.run(
            stage.run('halves', process, [source], tmp_path / 'out', settings={}, shard_items=4)
        )
    rows = write_rows(tmp_path / 'conversations.jsonl', ROWS)
    text = report.report([rows], WordCounter(), tmp_path / 'report', [tmp_path / 'out'])
    assert f'### halves ({tmp_path}/out, not complete)' in text
    assert '| dropped: even | 2 | 50.0% |' in text and '| kept | 2 | 50.0% |' in text
    assert 'Rows written: 4.' in text


def test_the_plot(reported):
    _, figure, path = reported
    assert (path / 'report' / 'lengths.png').stat().st_size > 10_000
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ['chat_specific', 'math', 'code']
    for axes in figure.axes:
        for patch in axes.patches:
            # Every text is in some bin.
            assert patch.get_data().values.sum() == pytest.approx(100)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {'en', 'zh', 'fr'}


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(UserError, match='there are no rows to report on'):
        report.report([write_rows(tmp_path / 'rows.jsonl', [])], WordCounter(), tmp_path / 'report')
    with pytest.raises(UserError, match='is not the output directory of an UltraLink stage'):
        source = write_rows(tmp_path / 'rows.jsonl', ROWS)
        report.report([source], WordCounter(), tmp_path / 'report', [tmp_path])
