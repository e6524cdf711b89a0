"""Segments: nothing is lost, none is too long, and lines stay whole where possible."""

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.ultralink.text.segments import segments
from tests.helpers.recorded_tokenizers import from_directory

TEXTS = st.text(alphabet='ab é.。!\n\u2028\t', max_size=300)
# The last tokenizer gives a text more tokens than its parts, as merges across a cut may.
COUNTS = st.sampled_from(
    [len, lambda text: len(text.encode()), lambda text: (len(text) + 3) // 4 + text.count('a\nb')]
)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, most=st.integers(2, 40), count=COUNTS)
def test_nothing_is_lost_and_none_is_too_long(text, most, count):
    found = segments(text, most, count)
    assert ''.join(found) == text
    assert all(segment and (count(segment) < most or len(segment) == 1) for segment in found)


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(st.text('abc ', min_size=1, max_size=9), max_size=40), most=st.integers(11, 60)
)
def test_lines_stay_whole_and_segments_are_as_long_as_they_can(lines, most):
    found = segments('\n'.join(lines), most, len)
    assert [line for segment in found for line in segment.removesuffix('\n').split('\n')] == (
        lines or []
    )
    for segment, following in itertools.pairwise(found):
        first_line = re.match('[^\n]*\n?', following)[0]
        assert len(segment) + len(first_line) >= most


def test_a_line_that_is_too_long_is_cut_where_a_reader_would():
    assert segments('One. Two two! Three three.', 15, len) == ['One. Two two!', ' Three three.']
    assert segments('一二三。四五六七。八', 6, len) == ['一二三。', '四五六七。', '八']
    assert segments('long words only here', 11, len) == ['long words', ' only here']
    assert segments('x' * 25, 11, len) == ['x' * 10, 'x' * 10, 'x' * 5]


def test_with_a_real_tokenizer(tmp_path):
    for name in ('qwen2', 'llama2'):
        tokenizer = from_directory(tmp_path / name, name)

        def count(text, tokenizer=tokenizer):
            return len(tokenizer.encode(text))

        text = '\n'.join(
            f'Line {i} of the text.\n' + 'Words and words. ' * (i % 40) for i in range(90)
        )
        found = segments(text, 120, count)
        assert ''.join(found) == text
        assert all(count(segment) < 120 for segment in found)
        assert len(found) < 3 * count(text) / 120
