"""Items: grouping those with the same question."""

from hypothesis import given
from hypothesis import strategies as st

from malora_jax.data.datasets import Item, group_answers


def test_rows_with_one_question_need_not_be_neighbours():
    items = [Item(q, answers=(a,)) for q, a in ('ax', 'ay', 'bx', 'ax', 'az')]
    assert group_answers(items) == [
        Item('a', answers=('x', 'y', 'z')),
        Item('b', answers=('x',)),
    ]


@given(st.lists(st.tuples(st.sampled_from('abc'), st.sampled_from('xyz'))))
def test_no_answer_is_lost(pairs):
    groups = group_answers(Item(question, answers=(answer,)) for question, answer in pairs)
    assert [group.question for group in groups] == list(dict.fromkeys(q for q, _ in pairs))
    found = [(group.question, answer) for group in groups for answer in group.answers]
    assert sorted(found) == sorted(set(pairs))
