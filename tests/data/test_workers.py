"""Worker threads that tokenize ahead: the same batches, also after a resume."""

import json

import pytest

from tests.helpers.data import assert_same_batches, make_train_iterator, take


@pytest.mark.parametrize('before, after', [(0, 1), (1, 2), (2, 2), (2, 0)])
def test_workers_change_nothing(splits, tokenizer, before, after):
    """Resuming with another number of workers changes nothing either."""
    alone = make_train_iterator(splits, tokenizer, (1.0, 2.0, 3.0))
    helped = make_train_iterator(splits, tokenizer, (1.0, 2.0, 3.0), workers=before)
    assert_same_batches(take(alone, 21), take(helped, 21))
    state = json.loads(json.dumps(helped.get_state()))
    fresh = make_train_iterator(splits, tokenizer, (1.0, 2.0, 3.0), workers=after)
    fresh.set_state(state)
    assert_same_batches(take(alone, 20), take(fresh, 20))
