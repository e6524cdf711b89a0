"""Processes that tokenise: the same batches, and the same ones again after a resume."""

import contextlib
import json

from data_helpers import assert_same, iterate, take


def test_one_worker(splits, tokenizer):
    with contextlib.closing(iterate(splits, tokenizer, (1.0, 2.0, 3.0), workers=1)) as helped:
        assert_same(take(iterate(splits, tokenizer, (1.0, 2.0, 3.0)), 20), take(helped, 20))


def test_two_workers_that_go_on(splits, tokenizer):
    alone = iterate(splits, tokenizer)
    with contextlib.closing(iterate(splits, tokenizer, workers=2)) as helped:
        assert_same(take(alone, 21), take(helped, 21))
        state = json.loads(json.dumps(helped.get_state()))
    with contextlib.closing(iterate(splits, tokenizer, workers=2)) as helped:
        helped.set_state(state)
        assert_same(take(alone, 20), take(helped, 20))
