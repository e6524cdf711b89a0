from dataclasses import dataclass

import pytest

from malora_jax.data import Example, Task, TaskSplit, exact_match
from malora_jax.errors import UserError


@dataclass
class Listed:
    """A source that returns exactly the given questions, valid or not."""

    questions: list[str]

    def examples(self, seed: int, count: int) -> list[Example]:
        return [Example(question, 'yes', {}) for question in self.questions]


def task(questions: list[str]) -> Task:
    return Task('fake', Listed(questions), exact_match)


def test_held_out_first_then_train():
    questions = [f'q{i}' for i in range(2_000)]
    split = task(questions).split(seed=0, max_per_task=300, held_out=64)
    assert [e.question for e in split.held_out] == questions[:64]
    assert [e.question for e in split.train] == questions[64:364]
    assert split.task_name == 'fake'
    assert split.num_available == 2_000


def test_a_task_with_few_questions_does_not_count():
    with pytest.raises(
        UserError, match=r"'fake' has 999 distinct .* every task needs at least 1,000"
    ):
        task([f'q{i}' for i in range(999)]).split(0, max_per_task=300, held_out=64)


def test_fewer_than_asked_for():
    with pytest.raises(UserError, match='1,500 distinct questions; 2,064 are needed'):
        task([f'q{i}' for i in range(1_500)]).split(0, max_per_task=2_000, held_out=64)


def test_questions_that_differ_in_case_and_spaces_are_one():
    questions = ['Is  IT?', *(f'q{i}' for i in range(998)), ' is it?\n']
    with pytest.raises(UserError, match='999 distinct'):
        task(questions).split(0, max_per_task=300, held_out=64)


def test_a_held_out_question_in_training_is_caught():
    questions = ['Is  IT?', *(f'q{i}' for i in range(1_000)), ' is it?\n', *'abcdefgh']
    with pytest.raises(UserError, match=r"1 held-out questions are also in .* 'Is  IT\?'"):
        task(questions).split(0, max_per_task=1_000, held_out=3)


@pytest.mark.parametrize(('max_per_task', 'held_out'), [(0, 64), (300, 0), (-1, 64)])
def test_sizes_must_be_positive(max_per_task, held_out):
    with pytest.raises(UserError, match='at least 1'):
        task([]).split(0, max_per_task, held_out)


def test_validation_comes_between_and_moves_no_held_out_question():
    questions = [f'q{i}' for i in range(2_000)]
    split = task(questions).split(0, max_per_task=300, held_out=64, validation=32)
    assert [e.question for e in split.held_out] == questions[:64]
    assert [e.question for e in split.validation] == questions[64:96]
    assert [e.question for e in split.train] == questions[96:396]


@pytest.mark.parametrize('repeated', [3, 5], ids=['validation', 'training'])
def test_a_held_out_question_elsewhere_is_caught(repeated):
    questions = [f'q{i}' for i in range(1_100)]
    questions[repeated] = 'Q0'
    with pytest.raises(UserError, match="1 held-out questions are also in training, such as 'q0'"):
        task(questions).split(0, max_per_task=300, held_out=2, validation=3)


def test_best_constant_is_best_under_the_tasks_own_scorer():
    def score(prediction: str, example: Example) -> float:
        return 1.0 if prediction.lower() == example.answer.lower() else 0.9

    answers = ['no', 'Yes', 'maybe', 'no', 'YES', 'yes', 'maybe', 'other']
    held_out = [Example(f'q{i}', answer, {}) for i, answer in enumerate(answers)]
    graded, exact = Task('fake', None, score), Task('fake', None, exact_match)
    assert TaskSplit(graded, [], held_out, 8).majority_baseline() == ('Yes', (3 + 5 * 0.9) / 8)
    assert TaskSplit(exact, [], held_out, 8).majority_baseline() == ('no', 2 / 8)
