"""The runner of stages: order, counts, resuming, and failures."""

import asyncio
import collections
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.ultralink import stage
from malora_jax.ultralink.stage import ItemOutcome
from tests.ultralink.helpers import contents, read_rows, write_rows


def run(process, source, output, **how):
    how = {'settings': {}, 'shard_items': 10, **how}
    return asyncio.run(stage.run('some', process, [source], output, **how))


async def uneven(row):
    """Stage function: some rows take longer; the id decides on dropping and the number of rows."""
    number = row.fields['id']
    await asyncio.sleep(0.002 * random.random() * (number % 7 == 0))
    if number % 5 == 1:
        return ItemOutcome(reason='one', counts={'seen': 1})
    if number % 5 == 2:
        return ItemOutcome(reason='two')
    return ItemOutcome(
        [{'id': number, 'copy': i} for i in range(number % 3 + 1)], counts={'seen': 1}
    )


@settings(max_examples=20, deadline=None)
@given(items=st.integers(1, 45), concurrency=st.integers(1, 20), shard_items=st.integers(1, 12))
def test_rows_in_order_and_counts_that_add_up(tmp_path_factory, items, concurrency, shard_items):
    path = tmp_path_factory.mktemp('stage')
    source = write_rows(path / 'in.jsonl', [{'id': i} for i in range(items)])
    found = run(uneven, source, path / 'out', concurrency=concurrency, shard_items=shard_items)
    kept = [i for i in range(items) if i % 5 not in (1, 2)]
    expected = [{'id': i, 'copy': copy} for i in kept for copy in range(i % 3 + 1)]
    assert read_rows(path / 'out') == expected
    dropped = collections.Counter(
        'one' if i % 5 == 1 else 'two' for i in range(items) if i not in kept
    )
    total = found.total
    assert (total.items, total.kept, total.rows) == (items, len(kept), len(expected))
    assert total.dropped == dropped
    assert total.counts == ({'seen': items - dropped['two']} if items - dropped['two'] else {})
    assert total.first == {
        reason: f'in.jsonl:{line}' for reason, line in (('one', 2), ('two', 3)) if reason in dropped
    }
    assert [shard.items for shard in found.shards] == [
        min(shard_items, items - start) for start in range(0, items, shard_items)
    ]


def test_the_same_bytes_whatever_the_concurrency_and_wherever_it_failed(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(95)])
    run(uneven, source, tmp_path / 'one', concurrency=1)
    run(uneven, source, tmp_path / 'many', concurrency=30)

    def failing_at(count):
        done = []

        async def process(row):
            done.append(row)
            if len(done) == count:
                raise UserError('Enough.')
            return await uneven(row)

        return process

    for count in (3, 40, 25, 31):
        with pytest.raises(UserError, match='Enough'):
            run(failing_at(count), source, tmp_path / 'broken', concurrency=7)
    run(uneven, source, tmp_path / 'broken', concurrency=7)
    one = contents(tmp_path / 'one')
    assert contents(tmp_path / 'many') == one
    assert contents(tmp_path / 'broken') == one
    # Each of the 10 shards has kept items and dropped items.
    names = [f'{kind}-0000{i}.jsonl' for kind in ('rejects', 'rows') for i in range(10)]
    assert sorted(one) == ['manifest.json', *names]


def test_what_is_done_is_not_done_again(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(25)])
    asked = []

    async def process(row):
        asked.append(row.fields['id'])
        if row.fields['id'] == 24 and asked.count(24) == 1:
            raise OSError('The disk is full.')
        return ItemOutcome([row.fields])

    with pytest.raises(OSError):
        run(process, source, tmp_path / 'out')
    run(process, source, tmp_path / 'out')
    assert asked == [*range(25), *range(20, 25)]
    run(process, source, tmp_path / 'out')
    assert len(asked) == 30


def test_after_an_error_what_is_begun_is_finished_and_nothing_begins(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(50)])
    begun, finished = [], []

    async def process(row):
        begun.append(row.fields['id'])
        if row.fields['id'] == 5:
            await asyncio.sleep(0.01)
            raise UserError('No more.')
        await asyncio.sleep(0.05)
        finished.append(row.fields['id'])
        return ItemOutcome([row.fields])

    with pytest.raises(UserError, match=r'^No more\.$'):
        run(process, source, tmp_path / 'out', concurrency=8)
    assert begun == [*range(8)]
    assert finished == [0, 1, 2, 3, 4, 6, 7]


def test_no_more_than_the_concurrency_at_work_and_few_wait(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(300)])
    at_work, most, read, written = 0, 0, [], asyncio.Event()

    async def process(row):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        read.append(row.fields['id'])
        if row.fields['id'] == 0:
            await written.wait()
        await asyncio.sleep(0)
        at_work -= 1
        return ItemOutcome([row.fields])

    async def main():
        running = asyncio.create_task(
            stage.run('some', process, [source], tmp_path / 'out', settings={}, concurrency=6)
        )
        await asyncio.sleep(0.3)
        # The first item is still being processed, so the others may not run ahead without bound.
        ahead = len(read)
        written.set()
        await running
        return ahead

    assert asyncio.run(main()) <= 6 * 5 + 1
    assert most == 6


def test_the_progress_counts_finished_items(tmp_path, monkeypatch):
    """The first item is the last to finish, so that the others wait for it."""
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(5)])
    shown, others = [], asyncio.Event()

    def show(bar):
        shown.append((bar.done, [*bar._facts]))

    monkeypatch.setattr(stage.ProgressBar, '_show', show)
    finished = []

    async def process(row):
        if row.fields['id'] == 0:
            await others.wait()
        finished.append(row.fields['id'])
        if len(finished) == 4:
            others.set()
        return ItemOutcome([row.fields])

    run(process, source, tmp_path / 'out', concurrency=5, progress_facts=lambda: [f'{finished}'])
    assert finished == [1, 2, 3, 4, 0]
    assert shown[-1] == (5, [f'{finished}'])
    assert (4, [f'{finished[:4]}']) in shown


def test_a_bad_line_in_the_middle_keeps_the_shards_before_it(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(25)])
    with source.open('a') as file:
        file.write('{"id"\n')
    with pytest.raises(UserError, match=r'in\.jsonl:26 is not valid JSON'):
        run(uneven, source, tmp_path / 'out', concurrency=4)
    manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
    assert len(manifest['shards']) == 2 and not manifest['complete']


def test_settings_of_the_runner_are_checked(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': 0}])
    with pytest.raises(UserError, match='concurrency is 0'):
        run(uneven, source, tmp_path / 'out', concurrency=0)


def test_an_input_without_rows(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [])
    with pytest.raises(UserError, match=r'in\.jsonl: there are no rows'):
        run(uneven, source, tmp_path / 'out')
    write_rows(source, [{'id': 0}])
    assert run(uneven, source, tmp_path / 'out').total.rows == 1


def test_rows_with_the_same_id(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': 'a'}, {'id': 'b'}, {'id': 'a'}])

    async def process(row):
        return ItemOutcome([row.fields])

    with pytest.raises(UserError, match=r"in\.jsonl:3: an earlier row has the same id 'a'"):
        run(process, source, tmp_path / 'out')


def test_random_numbers_depend_on_seed_stage_and_item():
    draws = {
        key: stage.item_rng(*key).random()
        for key in [(0, 'a', 'x'), (1, 'a', 'x'), (0, 'b', 'x'), (0, 'a', 'y')]
    }
    assert len(set(draws.values())) == 4
    assert all(stage.item_rng(*key).random() == value for key, value in draws.items())


def test_the_description_tells_everything(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', [{'id': i} for i in range(10)])
    assert stage.format_counts(run(uneven, source, tmp_path / 'out')) == (
        'some: 10 items, 6 kept, 11 rows\n'
        '  dropped, one: 2 (the first: in.jsonl:2)\n'
        '  dropped, two: 2 (the first: in.jsonl:3)\n'
        '  seen: 8'
    )
