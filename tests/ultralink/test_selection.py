"""Samples and limits: which items a stage processes, and how a larger selection extends output."""

import asyncio
import collections
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data.file_rows import Row
from malora_jax.errors import UserError
from malora_jax.ultralink import shards, stage
from malora_jax.ultralink.selection import Selection, smallest_hashes
from malora_jax.ultralink.stage import ItemOutcome
from tests.ultralink.helpers import contents, read_rows, write_rows

ROWS = [Row(f'in:{i}', {'id': f'item-{i}'}) for i in range(200)]


def ids(rows):
    return [row.fields['id'] for row in rows]


@given(small=st.integers(1, 220), large=st.integers(1, 220), seed=st.integers(0, 5))
def test_a_larger_sample_begins_with_the_smaller_one(small, large, seed):
    small, large = sorted((small, large))
    few, many = (ids(Selection(sample=n).select(ROWS, seed)) for n in (small, large))
    assert many[: len(few)] == few
    assert len(few) == len(set(few)) == min(small, 200)


def test_the_sample_depends_on_the_seed_and_not_on_the_order_of_the_input():
    shuffled = random.Random(3).sample(ROWS, len(ROWS))
    one = ids(Selection(sample=50).select(ROWS, 0))
    assert ids(Selection(sample=50).select(shuffled, 0)) == one
    assert ids(Selection(sample=50).select(ROWS, 1)) != one


def test_every_item_is_as_likely_to_be_drawn():
    counts = collections.Counter()
    for seed in range(200):
        counts.update(ids(smallest_hashes(ROWS, 50, seed)))
    # 50 times each on average; five standard deviations of the binomial are 31.
    assert len(counts) == 200 and all(19 <= number <= 81 for number in counts.values())


def test_rows_without_an_id_are_drawn_by_their_content():
    rows = [Row(f'in:{i}', {'question': f'{i}?\ud800'}) for i in range(30)]
    moved = [Row(f'other:{30 - i}', row.fields) for i, row in enumerate(reversed(rows))]
    first, second = ([row.fields for row in smallest_hashes(each, 10, 0)] for each in (rows, moved))
    assert first == second


@pytest.mark.parametrize(
    'selection, number',
    [((0, 0), 200), ((0, 7), 7), ((7, 0), 7), ((9, 7), 7), ((7, 9), 7), ((900, 0), 200)],
)
def test_number_of_items(selection, number):
    selected = ids(Selection(*selection).select(ROWS, 0))
    assert len(selected) == number
    # Without a sample, the items are the first ones.
    assert selection[0] or selected == ids(ROWS[:number])


def test_a_negative_number_is_refused():
    with pytest.raises(UserError, match='--limit is -1; it must be at least 0'):
        Selection(limit=-1)


async def copy(row):
    await asyncio.sleep(0.001 * random.random())
    return ItemOutcome([row.fields]) if int(row.fields['id'][5:]) % 4 else ItemOutcome((), 'four')


def run(path, output, selection, process=copy, concurrency=9, **how):
    source = path / 'in.jsonl'
    if not source.exists():
        write_rows(source, [row.fields for row in ROWS[:95]])
    options = {'settings': {}, 'shard_items': 10, 'concurrency': concurrency, **how}
    return asyncio.run(
        stage.run('some', process, [source], path / output, selection=selection, **options)
    )


@pytest.mark.parametrize(
    'steps',
    [
        [Selection(sample=7), Selection(sample=33)],
        [Selection(sample=20), Selection(sample=33)],
        [Selection(sample=500, limit=5), Selection(sample=12), Selection(sample=500)],
        [Selection(limit=7), Selection(limit=33)],
        [Selection(limit=33), Selection()],
    ],
)
def test_a_larger_selection_extends_the_output(tmp_path, steps):
    calls = []

    async def counted(row):
        calls.append(row.fields['id'])
        return await copy(row)

    kept = []
    for selection in steps:
        manifest = run(tmp_path, 'grown', selection, counted)
        rows = ids(shards.read([tmp_path / 'grown']))
        assert rows[: len(kept)] == kept
        kept = rows
        assert manifest.total.items == min(95, selection.max_items or 95)
    # Only the items of a last, shorter shard are processed again.
    assert max(collections.Counter(calls).values()) <= len(steps)
    assert len(calls) <= len(set(calls)) + 10 * (len(steps) - 1)
    for concurrency in (1, 30):
        run(tmp_path, f'at-once-{concurrency}', steps[-1], concurrency=concurrency)
        assert contents(tmp_path / f'at-once-{concurrency}') == contents(tmp_path / 'grown')


def test_an_extension_that_fails_continues(tmp_path):
    """Until the first new shard is written, the smaller output is complete and unchanged."""

    def failing_at(count):
        calls = []

        async def process(row):
            calls.append(row)
            if len(calls) == count:
                raise UserError('Enough.')
            return await copy(row)

        return process

    run(tmp_path, 'out', Selection(sample=25))
    before = contents(tmp_path / 'out')
    with pytest.raises(UserError, match='Enough'):
        run(tmp_path, 'out', Selection(sample=60), failing_at(3), concurrency=1)
    assert contents(tmp_path / 'out') == before
    run(tmp_path, 'out', Selection(sample=25), failing_at(1))  # Nothing is left to do.
    for count in (15, 12):
        with pytest.raises(UserError, match='Enough'):
            run(tmp_path, 'out', Selection(sample=60), failing_at(count))
    run(tmp_path, 'out', Selection(sample=60))
    run(tmp_path, 'at-once', Selection(sample=60))
    assert contents(tmp_path / 'out') == contents(tmp_path / 'at-once')


def test_a_kill_between_the_shard_and_the_manifest(tmp_path, monkeypatch):
    """The shorter shard is replaced, but the process dies before the manifest lists it."""
    run(tmp_path, 'out', Selection(sample=25))
    write = shards.files.write_json_lines

    def write_and_die(path, rows):
        write(path, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.files, 'write_json_lines', write_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 'out', Selection(sample=60))
    monkeypatch.undo()
    run(tmp_path, 'out', Selection(sample=60))
    run(tmp_path, 'at-once', Selection(sample=60))
    assert contents(tmp_path / 'out') == contents(tmp_path / 'at-once')


@pytest.mark.parametrize(
    'first, second, message',
    [
        (Selection(sample=20), Selection(sample=10), 'was made with --sample=20, not --sample=10'),
        (Selection(sample=20), Selection(), 'was made with --sample=20, not all items'),
        (Selection(), Selection(sample=20), 'was made with all items, not --sample=20'),
        (Selection(limit=9), Selection(9, 9), 'made with --limit=9, not --sample=9 --limit=9'),
    ],
)
def test_another_selection_is_refused(tmp_path, first, second, message):
    run(tmp_path, 'out', first)
    before = contents(tmp_path / 'out')
    with pytest.raises(UserError, match=message):
        run(tmp_path, 'out', second)
    assert contents(tmp_path / 'out') == before


@pytest.mark.parametrize(
    'first, second, advice',
    [
        (Selection(sample=20), Selection(limit=30), 'to extend it, use a larger --sample; other'),
        (
            Selection(limit=9),
            Selection(limit=8),
            'use a larger --limit without --sample; otherwise',
        ),
        (Selection(), Selection(limit=30), 'not --limit=30: choose another --output'),
    ],
)
def test_the_advice_keeps_the_kind_of_selection(tmp_path, first, second, advice):
    run(tmp_path, 'out', first)
    with pytest.raises(UserError, match=advice):
        run(tmp_path, 'out', second)


def test_a_manifest_of_an_earlier_version_has_all_items(tmp_path):
    run(tmp_path, 'out', Selection())
    path = tmp_path / 'out' / 'manifest.json'
    fields = json.loads(path.read_text())
    assert fields.pop('selection') == {'sample': 0, 'limit': 0}
    path.write_text(json.dumps(fields))
    run(tmp_path, 'out', Selection())
    assert len(read_rows(tmp_path / 'out')) == 71
