"""Pruning of made-up rows: budgets, samples and near-duplicates."""

import asyncio
import dataclasses
import json
import random
import signal

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import prune
from malora_jax.ultralink.prune import PruneConfig
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.conversations import conversation
from tests.ultralink.helpers import read_rows, write_rows

# Number of rows by language and subset.
COUNTS = {
    ('en', 'math'): 30,
    ('fr', 'math'): 40,
    ('zh', 'math'): 5,
    ('fr', 'code'): 20,
    ('ru', 'chat_specific'): 15,
}
CONFIG = PruneConfig(math=10, code=7, math_near_duplicates='remove')


def rows():
    return [conversation(*group, n) for group, count in COUNTS.items() for n in range(count)]


def run(path, made, config=CONFIG, seed=0, shard_items=1000):
    """Prune rows, and return the kept rows and the manifest."""
    output = path / f'pruned-{len(list(path.iterdir()))}'
    source = write_rows(path / f'{output.name}.jsonl', made)
    given = StageRun(config, [source], output, seed=seed, shard_items=shard_items)
    manifest = asyncio.run(STAGES['prune'].run(given))
    return read_rows(output), manifest


def kept(found, language, subset):
    return {row['id'] for row in found if (row['language'], row['subset']) == (language, subset)}


def test_an_interrupt_does_not_wait_till_all_is_compared(tmp_path, monkeypatch):
    compared = []

    def near_duplicates(sketches, threshold):
        signal.raise_signal(signal.SIGINT)
        compared.append(threshold)
        return {}

    monkeypatch.setattr(prune.MinHashSketches, 'near_duplicates', near_duplicates)
    # Background processes of a shell ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, rows())
    finally:
        signal.signal(signal.SIGINT, before)
    assert compared == []


def test_each_language_and_skill_has_its_budget(tmp_path):
    found, manifest = run(tmp_path, rows())
    sizes = {group: len(kept(found, *group)) for group in COUNTS}
    assert sizes == {
        ('en', 'math'): 30,  # All rows are kept.
        ('fr', 'math'): 10,
        ('zh', 'math'): 5,
        ('fr', 'code'): 7,
        ('ru', 'chat_specific'): 15,
    }
    total = manifest.total
    assert (total.items, total.kept, total.dropped) == (110, 67, {'over the budget': 43})
    originals = {row['id']: row for row in rows()}
    assert all(originals[row['id']] == row for row in found)
    assert prune.table(manifest).splitlines()[2:] == [
        '| en | math | 30 | 0 | 0 | 30 |',
        '| zh | math | 5 | 0 | 0 | 5 |',
        '| ru | chat_specific | 15 | 0 | 0 | 15 |',
        '| fr | math | 40 | 0 | 30 | 10 |',
        '| fr | code | 20 | 0 | 13 | 7 |',
        '| all |  | 110 | 0 | 43 | 67 |',
    ]


def test_the_sample_depends_on_the_seed_and_not_on_the_order(tmp_path):
    shuffled = rows()
    random.Random(5).shuffle(shuffled)
    found, other, again = (
        kept(run(tmp_path, *arguments)[0], 'fr', 'math')
        for arguments in ((rows(),), (rows(), CONFIG, 1), (shuffled, CONFIG, 0, 7))
    )
    assert found == again
    assert found != other


def test_the_output_of_an_earlier_version_is_complete(tmp_path):
    source = write_rows(tmp_path / 'in.jsonl', rows())
    given = StageRun(CONFIG, [source], tmp_path / 'out')
    manifest = asyncio.run(STAGES['prune'].run(given))
    path = tmp_path / 'out' / 'manifest.json'
    fields = json.loads(path.read_text())
    del fields['settings']['english'], fields['settings']['math_near_duplicates']
    path.write_text(json.dumps(fields))
    assert asyncio.run(STAGES['prune'].run(given)) == manifest


def test_a_larger_budget_only_adds(tmp_path):
    """Nested samples make growing amounts of data comparable."""
    small, large = (
        kept(run(tmp_path, rows(), PruneConfig(math=budget))[0], 'fr', 'math')
        for budget in (10, 20)
    )
    assert small < large and len(large) == 20


def test_every_row_is_as_likely_to_be_kept(tmp_path):
    times = dict.fromkeys((row['id'] for row in rows() if row['id'].startswith('fr-math')), 0)
    for seed in range(200):
        places = sorted(times, key=lambda key: prune._sampling_key(seed, key))
        for key in places[:10]:
            times[key] += 1
    # 50 times each on average; five standard deviations of the binomial are 31.
    assert all(19 <= number <= 81 for number in times.values())


def test_near_duplicates_go_first(tmp_path):
    made = rows()
    originals = [row for row in made if row['id'].startswith('fr-math')]
    copies = [
        {**row, 'id': f'fr-math-{100 + n}', 'data': [text + ' encore' for text in row['data']]}
        for n, row in enumerate(originals)
    ]
    found, manifest = run(tmp_path, [*copies, *made])
    assert manifest.total.dropped == {'near-duplicate': 40, 'over the budget': 43}
    # The copies do not change the sample.
    assert found == run(tmp_path, made)[0]


def test_near_duplicates_in_math_are_kept_by_default(tmp_path):
    made = [
        {**conversation('fr', subset, 0), 'id': f'{subset}-{n}'}
        for subset in ('math', 'code')
        for n in range(2)
    ]
    found, manifest = run(tmp_path, made, PruneConfig())
    assert [row['id'] for row in found] == ['math-0', 'math-1', 'code-0']
    assert manifest.total.dropped == {'near-duplicate': 1}


def test_english_keeps_near_duplicates(tmp_path):
    row = conversation('en', 'math', 0)
    found, _ = run(tmp_path, [row, {**row, 'id': 'other'}])
    assert len(found) == 2


def test_english_is_pruned_on_request(tmp_path):
    row = conversation('en', 'math', 99)
    made = [*rows(), row, {**row, 'id': 'other'}]
    found, manifest = run(tmp_path, made, dataclasses.replace(CONFIG, english='prune'))
    assert len(kept(found, 'en', 'math')) == 10
    assert '| en | math | 32 | 1 | 21 | 10 |' in prune.table(manifest)
    # The other languages do not change.
    other = run(tmp_path, rows())[0]
    assert [row for row in found if row['language'] != 'en'] == [
        row for row in other if row['language'] != 'en'
    ]


def test_the_same_text_in_another_subset_is_no_duplicate(tmp_path):
    row = conversation('fr', 'math', 0)
    found, _ = run(tmp_path, [row, {**row, 'id': 'other', 'subset': 'code'}])
    assert len(found) == 2


@pytest.mark.parametrize(
    'change, message',
    [
        ({'language': 'xx'}, "jsonl:2: Unknown language 'xx'"),
        ({'subset': 'maths'}, "jsonl:2: Unknown subset 'maths': did you mean math"),
        ({'data': ['q']}, "jsonl:2: 'data' has an odd number of messages .1"),
        ({'data': ['q', ' ']}, "jsonl:2: message 2 of 'data' is empty"),
        ({'data': ['q', 3]}, "jsonl:2: message 2 of 'data' is not a string"),
        ({'data': 'q'}, "jsonl:2: 'data' must be a non-empty list"),
        ({'id': 'fr-math-0'}, "jsonl:2: an earlier row has the same id 'fr-math-0'"),
        ({'id': None}, "jsonl:2 has no 'id'"),
    ],
)
def test_a_broken_row_is_named(tmp_path, change, message):
    made = [conversation('fr', 'math', 0), {**conversation('fr', 'math', 1), **change}]
    with pytest.raises(UserError, match=message):
        run(tmp_path, made)


@pytest.mark.parametrize(
    'fields', [{'math': -1}, {'code': 1.5}, {'min_similarity': 0.0}, {'min_similarity': 2.0}]
)
def test_settings_that_cannot_be(fields):
    (name,) = fields
    with pytest.raises(UserError, match=f'prune.{name} is'):
        PruneConfig(**fields)
