"""Estimates and previews, compared with what a stub endpoint counts."""

import asyncio
import dataclasses
import re
import subprocess
import sys
import time

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink import estimate as estimating
from malora_jax.ultralink import preview as previewing
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.estimate import Estimate
from malora_jax.ultralink.llm.cache import CachedModel, open_cache
from malora_jax.ultralink.selection import ALL_ITEMS, Selection
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.openai_stub import FailurePlan, serve_stub, texts
from tests.helpers.paths import ROOT
from tests.ultralink.billed_stages import BILLED_STAGES, MODEL, open_run
from tests.ultralink.helpers import FakeModel, WordCounter, contents, write_rows

ITEMS = 80
PLAN = FailurePlan({'truncated': 0.05, 'wrong_language': 0.05, 'rate_limit': 0.05})


def serve(name):
    return serve_stub(PLAN if name == 'dialogues' else FailurePlan(), BILLED_STAGES[name].answer)


async def run(name, root, stub, selection=ALL_ITEMS, **how):
    async with open_run(name, root, stub.address, ITEMS, selection, **how) as given:
        return await STAGES[name].run(given)


async def estimate(name, root, stub, selection=ALL_ITEMS, items=ITEMS):
    prices = root / 'prices.toml'
    prices.write_text(f'[{MODEL}]\nprompt = 1.0\ncompletion = 4.0\n')
    async with open_run(name, root, stub.address, items, selection, prices=prices) as given:
        return await estimating.estimate(STAGES[name], given)


async def preview(name, root, stub, number=5):
    async with open_run(name, root, stub.address, ITEMS) as given:
        return await previewing.preview(STAGES[name], given, number)


def whole_requests(item):
    """Return the requests of an item in a preview, with the lines that only an earlier one has."""
    whole = []
    for part in item.split('\n--- request ')[1:]:
        lines = part.partition('\n[reply: ')[0].split('\n')[1:]
        repeated = re.fullmatch(r'\[as in request (\d+): (\d+) lines\]', lines[0])
        if repeated:
            number, length = map(int, repeated.groups())
            lines[:1] = whole[number - 1].split('\n')[:length]
        whole.append('\n'.join(lines))
    return whole


def billed(stub):
    """Return what the stub has counted: requests, prompt tokens and completion tokens."""
    tokens = stub.token_counts
    return (
        sum(stub.answer_counts.values()),
        tokens['prompt_tokens'],
        tokens['completion_tokens'],
    )


def usage(estimated):
    return estimated.requests, estimated.prompt_tokens, estimated.completion_tokens


@pytest.mark.parametrize('name', BILLED_STAGES)
def test_estimates_next_to_the_counts_of_the_stub(name, tmp_path):
    with serve(name) as stub:
        assumed = asyncio.run(estimate(name, tmp_path, stub))
        assert billed(stub) == (0, 0, 0) and assumed.items == ITEMS
        asyncio.run(preview(name, tmp_path, stub, 20))
        spent = billed(stub)
        measured = asyncio.run(estimate(name, tmp_path, stub))
        assert billed(stub) == spent
        asyncio.run(run(name, tmp_path, stub))
        total = billed(stub)
        nothing = asyncio.run(estimate(name, tmp_path, stub))
    rest = [after - before for after, before in zip(total, spent, strict=True)]
    ratios = [
        [ours / theirs for ours, theirs in zip(usage(each), counted, strict=True)]
        for each, counted in ((assumed, total), (measured, rest))
    ]
    print(f'{name}: assumed / counted', *(f'{ratio:.2f}' for ratio in ratios[0]))
    print(f'{name}: measured / counted', *(f'{ratio:.2f}' for ratio in ratios[1]))
    # Without repeated requests, and with assumed lengths.
    assert 0.6 <= ratios[0][0] <= 1.05
    assert all(0.8 <= ratio <= 1.25 for ratio in ratios[1])
    assert (measured.items, measured.cached_items) == (60, 20)
    cost = (measured.prompt_tokens + 4 * measured.completion_tokens) / 1e6
    assert measured.cost == pytest.approx(cost)
    assert str(nothing) == f'{name}: estimate: no requests are left.'


def test_all_stages_that_call_a_model_are_tested():
    assert {*BILLED_STAGES} == {name for name, each in STAGES.items() if 'model' in each.needs}


@pytest.mark.parametrize('name', BILLED_STAGES)
def test_a_preview_writes_nothing_and_is_paid_for_once(name, tmp_path):
    with serve(name) as stub:
        first = asyncio.run(preview(name, tmp_path, stub))
        requests = billed(stub)[0]
        again = asyncio.run(preview(name, tmp_path, stub))
        assert billed(stub)[0] == requests > 0
        files = {path.name for path in tmp_path.iterdir() if 'sqlite' not in path.name}
        assert files <= {f'{name}-{ITEMS}.jsonl', 'baseline.jsonl'}
        assert first.count('===== item ') == 5
        assert first.endswith(
            f'5 items, {requests} requests: 0 replies were in the cache, and {requests} new ones '
            'are in the cache now, so a run does not request them again. Nothing was written to '
            f'{tmp_path}/out.'
        )
        assert f'{requests} replies were in the cache, and 0 new ones' in again
        # Every message of every request is shown; repeated lines, by the number of the request.
        whole = [text for item in first.split('===== item ')[1:] for text in whole_requests(item)]
        for body in stub.requests.values():
            assert any(
                all(message['content'] in text for message in body['messages']) for text in whole
            )
        # The items are the first ones of a sample.
        asyncio.run(run(name, tmp_path, stub, Selection(sample=5)))
        assert billed(stub)[0] == requests


def test_a_preview_shows_a_document_once_and_why_replies_were_refused(tmp_path):
    said = texts()['en']
    row = {'id': 'a', 'language': 'en', 'title': 't', 'text': f'{said["answers"][0]} The end.'}
    source = write_rows(tmp_path / 'in.jsonl', [row])
    answers = ['Why?', said['questions'][0], *said['answers'][:1], 'Why?', 'What?']

    async def main():
        model = FakeModel(lambda request: answers[len(model.requests) - 1])
        with open_cache(tmp_path / 'answers.sqlite') as cache:
            given = StageRun(
                DialoguesConfig(attempts=2),
                [source],
                tmp_path / 'out',
                model=CachedModel(model, cache),
                token_counter=WordCounter(),
            )
            return await previewing.preview(STAGES['dialogues'], given, 1), model.requests

    text, requests = asyncio.run(main())
    assert text.count('The end.') == 1
    assert [
        [message.content for message in request.messages if message.content not in whole]
        for request, whole in zip(requests, whole_requests(text), strict=True)
    ] == [[]] * 5
    lines = text.splitlines()
    replies = [line for line in lines if line.startswith('[reply: ')]
    assert replies == [
        '[reply: new, now in the cache; stop; refused: length (4 characters)]',
        *['[reply: new, now in the cache; stop]'] * 2,
        '[reply: new, now in the cache; stop; refused: length (4 characters)]',
        '[reply: new, now in the cache; stop; refused: length (5 characters)]',
    ]
    assert '--- kept (1 turn; ended: question: length (5 characters))' in lines


@pytest.mark.parametrize('name', BILLED_STAGES)
def test_a_larger_sample_pays_only_for_its_new_items(name, tmp_path):
    roots = [tmp_path / 'grown', tmp_path / 'at-once']
    for root in roots:
        root.mkdir()
    with serve(name) as stub:
        asyncio.run(run(name, roots[0], stub, Selection(sample=15)))
        paid = billed(stub)[0]
        left = asyncio.run(estimate(name, roots[0], stub, Selection(sample=50)))
        assert (left.items, left.cached_items) == (35, 15)
        asyncio.run(run(name, roots[0], stub, Selection(sample=50), concurrency=2))
        assert max(stub.answer_counts.values()) == 1
        grown = billed(stub)
    with serve(name) as stub:
        asyncio.run(run(name, roots[1], stub, Selection(sample=50), concurrency=30))
        assert billed(stub) == grown and grown[0] > paid
    assert contents(roots[0] / 'out') == contents(roots[1] / 'out')


@pytest.mark.slow
def test_a_larger_sample_that_is_killed(tmp_path):
    """The bytes are those of an undisturbed run, and only requests in flight are repeated."""
    kills, concurrency = 3, 8
    for name in ('killed', 'at-once'):
        (tmp_path / name).mkdir()
    # With a delay, processes are killed in the middle.
    with serve_stub(FailurePlan(latency_s=0.1), BILLED_STAGES['translate'].answer) as stub:

        def start(name, sample):
            arguments = ['translate', tmp_path / name, stub.address, ITEMS, sample]
            command = [sys.executable, '-m', 'tests.ultralink.billed_stages', *map(str, arguments)]
            return subprocess.Popen(command, cwd=ROOT)

        assert start('killed', 25).wait(200) == 0
        for _ in range(kills):
            answers = sum(stub.answer_counts.values()) + 15
            process = start('killed', 65)
            while sum(stub.answer_counts.values()) < answers:
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
            process.wait()
            time.sleep(0.3)  # Let the stub finish its active requests.
        assert start('killed', 65).wait(200) == 0
        repeated = sum(stub.answer_counts.values()) - len(stub.answer_counts)
        assert start('at-once', 65).wait(200) == 0
    assert repeated <= kills * concurrency
    assert contents(tmp_path / 'killed' / 'out') == contents(tmp_path / 'at-once' / 'out')


def test_the_finished_items_correct_the_estimate_of_the_others(tmp_path):
    with serve('criteria') as stub:
        asyncio.run(run('criteria', tmp_path, stub, Selection(limit=40)))
        estimated = asyncio.run(estimate('criteria', tmp_path, stub))
    assert (estimated.items, estimated.cached_items) == (40, 0)
    assert estimated.basis == 'measured on the replies to 40 items in the cache'


def test_many_items_are_estimated_from_some(tmp_path):
    with serve('criteria') as stub:
        few, many = (
            asyncio.run(estimate('criteria', tmp_path, stub, items=items)) for items in (200, 2400)
        )
        limited = asyncio.run(estimate('criteria', tmp_path, stub, Selection(100, 50), 2400))
    assert (few.items, many.items, limited.items) == (200, 2400, 50)
    assert many.prompt_tokens == pytest.approx(12 * few.prompt_tokens, rel=0.05)


def test_an_estimate_checks_the_output_and_the_rows(tmp_path):
    with serve('criteria') as stub:
        asyncio.run(run('criteria', tmp_path, stub, Selection(sample=15)))
        with pytest.raises(UserError, match='was made with --sample=15, not --sample=10'):
            asyncio.run(estimate('criteria', tmp_path, stub, Selection(sample=10)))
        (tmp_path / 'out' / 'manifest.json').unlink()
        with pytest.raises(UserError, match='is not empty and has no manifest'):
            asyncio.run(estimate('criteria', tmp_path, stub))

    async def estimate_broken():
        async with open_run('translate', tmp_path, stub.address, 3) as given:
            rows = write_rows(tmp_path / 'bad.jsonl', [{'id': 'a', 'language': 'en'}])
            given = dataclasses.replace(given, inputs=[rows], output=tmp_path / 'new')
            return await estimating.estimate(STAGES['translate'], given)

    with pytest.raises(UserError, match=r'bad\.jsonl:1'):
        asyncio.run(estimate_broken())


def test_the_text_of_an_estimate():
    estimated = Estimate('judge', 1200, 3, 2400, 123456, 7890, 1.5, 'assuming this')
    assert str(estimated) == (
        'judge: estimate for 1,200 items (and 3 from the cache): 2,400 requests, 123,456 prompt '
        'tokens, 7,890 completion tokens, $1.5000; assuming this.'
    )
    unknown = dataclasses.replace(estimated, cost=None, cached_items=0)
    assert 'tokens, price unknown without --prices; assuming' in str(unknown)


@pytest.mark.parametrize(
    'selection, items', [(Selection(limit=10), 80), (Selection(sample=40), 80), (ALL_ITEMS, 2000)]
)
def test_a_preview_of_all_items_corrects_the_estimate_of_any_selection(selection, items, tmp_path):
    with serve('criteria') as stub:

        async def preview_all():
            async with open_run('criteria', tmp_path, stub.address, items) as given:
                await previewing.preview(STAGES['criteria'], given, 3)

        asyncio.run(preview_all())
        estimated = asyncio.run(estimate('criteria', tmp_path, stub, selection, items))
    assert estimated.basis.endswith('measured on the replies to 3 items in the cache')
    assert estimated.items + estimated.cached_items == min(items, selection.max_items or items)
    if selection != Selection(limit=10):  # None of the previewed items is among the first ten.
        assert estimated.cached_items == 3


def test_a_broken_row_that_the_run_does_not_read(tmp_path):
    with serve('criteria') as stub:

        async def estimate_with_broken_row():
            async with open_run(
                'criteria', tmp_path, stub.address, 30, Selection(limit=5)
            ) as given:
                with given.inputs[0].open('a') as file:
                    file.write('{"id"\n')
                await previewing.preview(STAGES['criteria'], given, 1)
                given = dataclasses.replace(given, seed=1, selection=Selection(limit=4))
                return await estimating.estimate(STAGES['criteria'], given)

        assert asyncio.run(estimate_with_broken_row()).items >= 3


def test_an_estimate_from_few_items_says_so(tmp_path):
    bases = {}
    for number in (3, 20):
        with serve('criteria') as stub:
            asyncio.run(preview('criteria', tmp_path, stub, number))
            bases[number] = asyncio.run(estimate('criteria', tmp_path, stub)).basis
        (tmp_path / 'answers.sqlite').unlink()
    assert bases == {
        3: 'imprecise below 20 items (--preview=20); measured on the replies to 3 items in the '
        'cache',
        20: 'measured on the replies to 20 items in the cache',
    }


@pytest.mark.parametrize('limit', ['token_limit', 'price_limit'])
def test_a_limit_that_the_run_probably_reaches_is_named_at_its_start(limit, tmp_path):
    prices = tmp_path / 'prices.toml'
    prices.write_text(f'[{MODEL}]\nprompt = 1.0\ncompletion = 4.0\n')
    with serve('criteria') as stub:

        async def warning(most):
            limits = {'prices': prices, limit: most}
            async with open_run('criteria', tmp_path, stub.address, ITEMS, **limits) as given:
                return (await estimating.estimate(STAGES['criteria'], given)).warning

        asyncio.run(preview('criteria', tmp_path, stub, 20))
        _, prompt, completion = billed(stub)
        used = prompt + completion if limit == 'token_limit' else (prompt + 4 * completion) / 1e6
        assert asyncio.run(warning(20 * used)) == ''
        message = asyncio.run(warning(2 * used))
    assert message.startswith(f'The run will probably stop at --{limit.replace("_", "-")}=')
    amount = f'{used:,} tokens are' if limit == 'token_limit' else f'${used:.4f} is'
    assert message.endswith(f'; {amount} used already.')


def test_replies_from_another_address_are_named(tmp_path):
    with serve('translate') as stub:
        asyncio.run(preview('translate', tmp_path, stub, 7))
        assert asyncio.run(estimate('translate', tmp_path, stub)).warning == ''
        paid = billed(stub)
        stub.address = stub.address.replace('127.0.0.1', 'localhost')
        moved = asyncio.run(estimate('translate', tmp_path, stub))
        assert billed(stub) == paid
        asyncio.run(run('translate', tmp_path, stub))
        address = stub.address.replace('localhost', '127.0.0.1')
        stub.address = address
        assert asyncio.run(estimate('translate', tmp_path, stub)).warning == ''
    assert moved.cached_items == 0
    assert moved.warning == (
        'The cache has replies to the same messages for 7 items, but from another --base-url or '
        'with other sampling settings, so the run pays for them again.'
    )
