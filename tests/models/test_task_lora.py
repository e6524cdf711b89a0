"""The LoRA of a task: it computes what the adapter computes for tokens of this task."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from malora_jax.adapters.bank import AdapterBank
from malora_jax.errors import UserError
from malora_jax.models.engine import Engine, GenerationRequest
from malora_jax.models.generate import Generator
from malora_jax.models.task_lora import task_lora
from tests.helpers.models import logits_of, prompts, random_variables, small_method, tiny_model

TASKS = ('one', 'two', 'three')
MODEL = tiny_model(small_method('mtl_lora', tasks=TASKS, rank_stabilized=True, targets=('q', 'o')))
TOKENS = jnp.asarray(prompts(9, 9))

pytestmark = pytest.mark.usefixtures('compile_quickly')


@pytest.fixture(scope='module')
def variables():
    return random_variables(MODEL)


def test_logits_of_each_task(variables):
    """The adapter is given the tasks of its tokens, the LoRA is not."""
    found = []
    for number, task in enumerate(TASKS):
        lora, own = task_lora(MODEL, variables, task)
        assert not lora.adapter.tasks and lora.adapter.structure.is_mergeable
        expected = logits_of(MODEL, variables, TOKENS, tasks=number)
        found.append(logits_of(lora, own, TOKENS))
        np.testing.assert_allclose(found[-1], expected, rtol=0, atol=1e-5 * abs(expected).max())
    assert min(abs(found[i] - found[i - 1]).max() for i in range(3)) > 0.1


def test_generated_tokens_of_each_task(variables):
    """Every token of a greedy answer is the most probable one of the adapter with that task."""
    questions, answers = prompts(5, 11), []
    for number, task in enumerate(TASKS):
        lora, own = task_lora(MODEL, variables, task)
        generator = Generator(lora, 999, batch_size=2, max_new_tokens=8)
        answers.append(generator(own, questions))
        for question, answer in zip(questions, answers[-1], strict=True):
            logits_TV = logits_of(MODEL, variables, [question + answer], tasks=number)[0]
            assert answer == logits_TV[len(question) - 1 : -1].argmax(axis=-1).tolist()
    assert answers[0] != answers[1] != answers[2]


def test_other_models_have_no_tasks_to_choose():
    for model in (tiny_model(), tiny_model(small_method('malora'))):
        assert task_lora(model, {}, '') == (model, {})
        with pytest.raises(UserError, match="for all tasks: leave out the task 'one'"):
            task_lora(model, {}, 'one')


def test_a_task_must_be_named_and_known(variables):
    message = re.escape('has parameters for each task (one, two, three): choose one with --task=')
    with pytest.raises(UserError, match=message):
        task_lora(MODEL, variables)
    with pytest.raises(UserError, match="Unknown task 'on': did you mean one"):
        task_lora(MODEL, variables, 'on')


def test_the_only_task_needs_no_name():
    model = tiny_model(small_method('mtl_lora', tasks=('one',)))
    values = random_variables(model)
    found = logits_of(*task_lora(model, values), TOKENS)
    np.testing.assert_allclose(found, logits_of(model, values, TOKENS), rtol=0, atol=1e-4)


def test_generation_without_a_task_is_refused(variables):
    for make in (
        lambda: AdapterBank((MODEL.adapter,)),
        lambda: Engine(MODEL, variables, [999], 1).submit(GenerationRequest([3], 1)),
    ):
        with pytest.raises(UserError, match='has parameters for each task'):
            make()
