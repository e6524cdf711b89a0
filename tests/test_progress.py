import contextlib
import io

import pytest

from malora_jax import progress
from malora_jax.distributed import hosts
from malora_jax.progress import ProgressBar, track
from tests.helpers.terminal import terminal

LOSSES = {
    'word_sequence_reversal': 0.914,
    'number_filtering': 1.238,
    'chain_sum': 1.01,
    'decimal_chain_sum': 2.5,
    'needle_haystack': 0.3,
    'family_relationships': 0.07,
}
FACTS = ['loss 0.913', '420 tokens/s']


class Clock:
    """Clock that stands still until its time is changed."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def tick(self, seconds: float, result: int) -> int:
        self.now += seconds
        return result


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, 'time', clock)
    return clock


def train(clock: Clock, end: int = 240) -> None:
    """Show training: 20 s of compilation, then 2.5 s per step."""
    with ProgressBar('train', 240, 'step') as bar:
        clock.now += 20
        bar.update(0)
        for step in range(1, end + 1):
            clock.now += 2.5
            bar.update(step, FACTS, LOSSES)


def test_in_80_columns(clock):
    with terminal(80) as screen:
        train(clock)
    assert screen.frames[0] == f'train {"░" * 30}   0/240  compiling…'
    assert screen.frames[46] == (
        f'train {"█" * 3}{"░" * 14}  45/240  2.5 s/step  eta 8:08  loss 0.913  420 tokens/s\n'
        '  word_sequence_reversal 0.91  number_filtering 1.24  chain_sum 1.01\n'
        '  decimal_chain_sum 2.50  needle_haystack 0.30  family_relationships 0.07'
    )
    assert screen.text == (
        f'train {"█" * 17} 240/240  2.5 s/step  in 10:20  loss 0.913  420 tokens/s\n'
        '  word_sequence_reversal 0.91  number_filtering 1.24  chain_sum 1.01\n'
        '  decimal_chain_sum 2.50  needle_haystack 0.30  family_relationships 0.07\n'
    )


def test_in_110_columns(clock):
    with terminal(110) as screen:
        train(clock)
    assert screen.text.splitlines() == [
        f'train {"█" * 30} 240/240  2.5 s/step  in 10:20  loss 0.913  420 tokens/s',
        '  word_sequence_reversal 0.91  number_filtering 1.24  chain_sum 1.01'
        '  decimal_chain_sum 2.50',
        '  needle_haystack 0.30  family_relationships 0.07',
    ]


@pytest.mark.parametrize('columns', [40, 50, 80, 110, 200])
@pytest.mark.parametrize('count', [1, 2, 3, 4, 7, 30])
def test_every_task_is_shown_or_counted(columns, count):
    words = [f'a_task_with_a_long_name_{i} 0.50' for i in range(count)]
    with terminal(columns) as screen, ProgressBar('train', 9, 'step') as bar:
        bar.update(9, FACTS, {word.split()[0]: 0.5 for word in words})
    first, *rest = screen.text.splitlines()
    assert first.startswith('train ') and len(rest) <= 3
    shown = [word for line in rest for word in line.strip().split('  ')]
    if shown != words:
        hidden = count - len(shown) + 1
        assert shown == [*words[:-hidden], '+1 task' if hidden == 1 else f'+{hidden} tasks']


def test_a_very_narrow_terminal():
    with terminal(12) as screen, ProgressBar('train', 240, 'step') as bar:
        bar.update(120, FACTS, LOSSES)
    assert screen.text.splitlines() == ['train 120/2', '  word_sequ', '  number_fi', '  +4 tasks']


def test_wide_characters_count_twice():
    bar = ProgressBar('train', 9, 'step')
    bar.update(3, [], {'数学': 1.0, '翻訳': 2.0, '要約': 3.0})
    assert bar._lines(22)[1:] == ['  数学 1.00  翻訳 2.00', '  要約 3.00']
    assert bar._lines(21)[1:] == ['  数学 1.00', '  翻訳 2.00', '  要約 3.00']


def test_a_log_gets_a_line_every_20_seconds(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log:
        train(clock, end=20)
    rest = ', '.join([*FACTS, *(f'{task} {loss:.2f}' for task, loss in LOSSES.items())])
    steps = ['0/240, compiling…', '0/240', *(f'{n}/240, {rest}' for n in (8, 16, 20))]
    assert log.getvalue().splitlines() == [f'train: step {text}' for text in steps]


def test_a_terminal_that_cannot_redraw_gets_the_lines_of_a_log(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log:
        train(clock)
    with terminal(300, 'dumb') as screen:
        train(clock)
    assert screen.text == log.getvalue() and not screen.frames


def test_a_line_is_printed_above_the_bar(clock, capsys):
    def show() -> None:
        with ProgressBar('train', 2, 'step') as bar:
            for step in (1, 2):
                clock.now += 1
                bar.update(step, [], {'chain_sum': 1 / step})
                bar.write(f'Step {step}.')

    with terminal(80) as screen:
        show()
    assert screen.text.splitlines()[:2] == ['Step 1.', 'Step 2.']
    assert screen.text.count('train') == screen.text.count('chain_sum') == 1
    show()
    told = capsys.readouterr()
    assert told.out == 'Step 1.\nStep 2.\n'
    assert told.err == ('train: step 0/2, compiling…\ntrain: step 2/2, chain_sum 0.50\n')


def test_an_error_begins_a_line_of_its_own(clock):
    def fail() -> None:
        with contextlib.suppress(ValueError), ProgressBar('train', 9, 'step') as bar:
            clock.now += 100
            bar.update(3)
            clock.now += 0.01
            bar.update(4)
            raise ValueError
        print('The disk is full.')

    with terminal(80) as screen:
        fail()
    bar, message = screen.text.splitlines()
    assert bar.startswith('train ') and message == 'The disk is full.'
    with contextlib.redirect_stderr(io.StringIO()) as log:
        fail()
    assert log.getvalue() == 'train: step 0/9, compiling…\ntrain: step 3/9\n'


def test_work_of_an_earlier_start_and_parts_of_a_unit(clock):
    with terminal(80) as screen, ProgressBar('score', 8, 'question', done=2) as bar:
        clock.now += 30
        bar.advance(0, ['chain_sum'])
        for _ in range(3):
            clock.now += 1
            bar.advance(1 / 3, ['chain_sum'])
    assert [frame.partition(' 2/8')[2].strip() for frame in screen.frames[:4]] == [
        'compiling…',
        'chain_sum',
        '3.0 s/question  eta 0:17  chain_sum',
        '3.0 s/question  eta 0:16  chain_sum',
    ]
    assert screen.text.endswith('3/8  3.0 s/question  in 0:33  chain_sum\n')


def test_nothing_is_shown_without_a_label_or_by_another_process(monkeypatch, capsys):
    def show(label: str | None) -> None:
        with hosts.progress_bar(label, 9, 'step') as bar:
            bar.update(9)
            bar.write('A line.')

    show(None)
    monkeypatch.setattr(hosts, 'is_first_process', lambda: False)
    show('train')
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('total', [None, 25])
def test_items_that_take_more_than_a_second(clock, total):
    def read(count: int) -> list[int]:
        items = track(iter(range(count)), 'read a.csv', 'row', total)
        return [clock.tick(0.125, item) for item in items]

    with terminal(80) as screen:
        assert read(7) == [*range(7)]
    assert screen.text == ''
    with terminal(80) as screen:
        read(25)
    end = '25  8.0 rows/s  in 0:03' if total is None else f'{"█" * 30} 25/25  8.0 rows/s  in 0:03'
    assert screen.text == f'read a.csv {end}\n'
    with contextlib.redirect_stderr(io.StringIO()) as log:
        read(25)
    of = '' if total is None else '/25'
    assert log.getvalue() == f'read a.csv: row 8{of}\nread a.csv: row 25{of}\n'


def test_the_length_of_items_is_the_total(clock):
    with terminal(80) as screen:
        assert [clock.tick(0.125, item) for item in track(range(25), 'read a.csv', 'row')]
    assert screen.text == f'read a.csv {"█" * 30} 25/25  8.0 rows/s  in 0:03\n'
