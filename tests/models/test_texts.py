"""What of a text is shown while it is written: in the end all of it, and never too much."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.models.texts import Ending, TextStream


class Bytes:
    """A token for each byte, and one that is no text."""

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        assert continues
        return bytes(i for i in ids if i < 256).decode('utf-8', 'replace')

    def token_to_id(self, token: str) -> int | None:
        return 256 if token == '<end>' else None


def pieces(text: bytes | list[int], sizes: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """What is shown after each of some runs of tokens, and at last what was held back."""
    stream, shown, start = TextStream(Ending(Bytes(), stop)), [], 0
    for size in [*sizes, len(text)]:
        shown.append(stream.add(list(text[start : start + size])))
        start += size
        if stream.is_over:
            return shown
    return [*shown, stream.rest()]


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
        Ending(Bytes(), ('x', ''))
    assert str(caught.value) == "stop is ('x', ''); it must be texts that are not empty."
