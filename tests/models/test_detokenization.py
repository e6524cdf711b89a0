"""Streaming of text: in the end all of it is sent, and never too much."""

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.models.detokenization import StopCondition, TextStream
from tests.helpers import recorded_tokenizers


class Bytes:
    """Tokenizer with a token per byte, and one token without text."""

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        assert continues
        return bytes(i for i in ids if i < 256).decode('utf-8', 'replace')

    def token_to_id(self, token: str) -> int | None:
        return 256 if token == '<end>' else None


def pieces(text: bytes | list[int], sizes: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """Return the streamed text after each of several runs of tokens, and the rest at the end."""
    stream, shown, start = TextStream(StopCondition(Bytes(), stop)), [], 0
    for size in [*sizes, len(text)]:
        shown.append(stream.add(list(text[start : start + size])))
        start += size
        if stream.is_over:
            return shown
    return [*shown, stream.flush()]


def test_a_character_is_shown_when_it_is_whole():
    text = 'a€b'.encode()
    assert pieces(text, [1, 1, 1, 1]) == ['a', '', '', '€', 'b', '']


def test_bytes_that_never_become_a_character_are_shown_at_last():
    assert pieces(b'ab\xe2\x82', [2, 1]) == ['ab', '', '', '\ufffd']


def test_what_may_be_the_end_is_held_back():
    assert pieces(b'one\n\nQ: two', [4, 2, 1], ('\n\nQ:',)) == ['one', '', '']
    assert pieces(b'one\n\nA: two', [4, 2, 1], ('\n\nQ:',)) == ['one', '\n\nA', ':', ' two', '']


def test_an_end_that_is_a_special_token():
    assert pieces([97, 98, 256, 99], [1, 2], ('<end>',)) == ['a', 'b']


@settings(deadline=None, max_examples=200)
@given(
    st.text('ab\n€', max_size=20),
    st.lists(st.integers(1, 4), max_size=20),
    st.lists(st.text('ab\n', min_size=1, max_size=4), max_size=2),
)
def test_the_pieces_are_the_text_up_to_its_end(text, sizes, stops):
    shown = pieces(text.encode(), sizes, tuple(stops))
    for end in range(len(text) + 1):
        ended = [text[:end].removesuffix(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            text = min(ended, key=len)
            break
    assert ''.join(shown) == text


def test_an_empty_stop_is_refused():
    with pytest.raises(UserError) as caught:
        StopCondition(Bytes(), ('x', ''))
    assert str(caught.value) == "stop is ('x', ''); it must be a list of non-empty strings."


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text('ab', min_size=1, max_size=40), min_size=1, max_size=4),
    st.text('ab', max_size=200),
)
def test_stops_that_contain_each_other(stops, text):
    """The first complete stop string ends the text; of several, the longest one."""
    shown = ''.join(pieces(text.encode(), [7] * 40, tuple(stops)))
    assert shown == StopCondition(Bytes(), tuple(stops)).text(list(text.encode()))


@pytest.mark.parametrize('text', ['x' * 20_000, 'xy' * 10_000, 'a' * 20_000])
def test_long_stops_take_no_time(text):
    stops = tuple('x' * 1_000_000 + end for end in 'abcd')
    start = time.perf_counter()
    shown = ''.join(pieces(text.encode(), [4] * 5000, stops))
    assert shown == text and time.perf_counter() - start < 10


def test_the_time_of_a_text_is_linear():
    """Only the last few tokens are decoded again, whatever they are."""
    decoded = []

    class CountedDecodes(Bytes):
        def decode(self, ids, *, continues=False):
            decoded.append(len(ids))
            return super().decode(ids, continues=continues)

    for text in (b'word ' * 2000, '€'.encode() * 3000, b'\xff' * 10_000, b'\xe2\x82' * 5000):
        decoded.clear()
        stream, shown = TextStream(StopCondition(CountedDecodes(), ())), ''
        for start in range(0, len(text), 4):
            shown += stream.add(list(text[start : start + 4]))
        assert shown + stream.flush() == text.decode(errors='replace')
        assert max(decoded) <= 70 and sum(decoded) < 50 * len(text)


@pytest.mark.parametrize('name', recorded_tokenizers.NAMES)
def test_pieces_of_a_tokenizer(name, tmp_path):
    """Joined, the pieces equal the text that is decoded at once."""
    tokenizer = recorded_tokenizers.from_directory(tmp_path / name, name)
    rng = random.Random(0)
    for text in ('Grüße, 你好 ' * 40, '😀👩‍👩‍👧 x\n\n  y' * 30, ' a  b ' * 50):
        ids = tokenizer.encode(text, continues=True)
        stream, shown, start = TextStream(StopCondition(tokenizer, ('never',))), '', 0
        while start < len(ids):
            count = rng.randrange(1, 5)
            shown += stream.add(ids[start : start + count])
            start += count
        assert shown + stream.flush() == tokenizer.decode(ids, continues=True)


def test_other_threads_run_while_a_text_is_encoded(tmp_path):
    tokenizer = recorded_tokenizers.from_directory(tmp_path / 'qwen2', 'qwen2')
    text, counts, done = '9' * 500_000, [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counts[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    start, before = time.perf_counter(), counts[0]
    tokenizer.encode(text)
    seconds, during = time.perf_counter() - start, counts[0] - before
    done.set()
    thread.join()
    assert during > 50 * seconds  # If the tokenizer held the GIL, one or two.
