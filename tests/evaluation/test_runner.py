import dataclasses

import pytest

from malora_jax.data import Example, Split, Task, exact_match, get_template
from malora_jax.evaluation.runner import Answer, answer_held_out, average
from malora_jax.evaluation.runner import share_exact as share

PLAIN = get_template('plain')


class ByteTokenizer:
    eos_id = 256
    bos_id = None

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], *, continues: bool = False) -> str:
        return bytes(ids).decode()

    def token_to_id(self, token: str) -> int | None:
        return None


class NoSource:
    def examples(self, seed: int, count: int) -> list[Example]:
        raise NotImplementedError


def half_for_length(prediction: str, example: Example) -> float:
    return 1.0 if prediction == example.answer else 0.5 * (len(prediction) == len(example.answer))


EXACT = Task('runner_exact', NoSource(), exact_match)
PARTIAL = Task('runner_partial', NoSource(), half_for_length)


@dataclasses.dataclass
class Scripted:
    """A generator that says what it is told to, and remembers what it was asked."""

    says: dict[str, str]
    max_new_tokens: int = 16
    asked: list[tuple[list[str], int]] = dataclasses.field(default_factory=list)

    def __call__(self, variables, prompts, limit):
        assert variables == 'variables'
        texts = [bytes(prompt).decode() for prompt in prompts]
        self.asked.append((texts, limit))
        return [list(self.says[text].encode()) for text in texts]


SPLITS = [
    Split(EXACT, [], [Example('a?', '1', {}), Example('b?', '12345', {})], 1000),
    Split(PARTIAL, [], [Example('c?', '77', {}), Example('d?', '88', {})], 1000),
]
SAYS = {
    'Question: a?\nAnswer:': ' 1 ',
    'Question: b?\nAnswer:': ' 12346',
    'Question: c?\nAnswer:': '77',
    'Question: d?\nAnswer:': ' 89',
}


@pytest.fixture
def asked_and_answers():
    generator = Scripted(SAYS)
    answers = answer_held_out(generator, 'variables', SPLITS, ByteTokenizer(), PLAIN, 'test')
    return generator.asked, answers


def test_every_question_is_answered_and_scored_by_its_task(asked_and_answers):
    assert asked_and_answers[1] == [
        Answer('runner_exact', 'a?', '1', '1', 1.0),
        Answer('runner_exact', 'b?', '12345', '12346', 0.0),
        Answer('runner_partial', 'c?', '77', '77', 1.0),
        Answer('runner_partial', 'd?', '88', '89', 0.5),
    ]


def test_prompts_end_where_the_answer_begins_and_there_is_room_for_it(asked_and_answers):
    prompts = list(SAYS)
    # The longest answer with the space before it, and four more.
    assert asked_and_answers[0] == [(prompts[:2], 6 + 4), (prompts[2:], 3 + 4)]


def test_a_partial_score_is_no_exact_match(asked_and_answers):
    found = share(asked_and_answers[1])
    assert found == {'runner_exact': 0.5, 'runner_partial': 0.5}
    assert average(found | {'other': 0.2}) == pytest.approx(0.4)
