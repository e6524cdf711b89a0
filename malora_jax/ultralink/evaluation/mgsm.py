"""MGSM, asked of a chat model in each language: 250 problems, one number each as the answer.

A base model is better asked with worked examples, which `experiments.evaluate` and
`experiments.harness` do with the tasks mgsm_LANGUAGE.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from decimal import Decimal

from malora_jax import errors
from malora_jax.data.benchmarks import mgsm
from malora_jax.data.numbers import final_number
from malora_jax.data.rows import Row
from malora_jax.ultralink import stage
from malora_jax.ultralink.languages import get_language
from malora_jax.ultralink.llm.chat import Message, Model, Request, Sampling
from malora_jax.ultralink.manifest import Manifest
from malora_jax.ultralink.stage import Outcome

STAGE = 'mgsm'
# What follows the problem: how the answer is to be announced, as `final_number` looks for it.
INSTRUCTIONS = {
    'en': 'Solve the problem step by step. End with "The answer is" and the number.',
    'zh': '请逐步解答这道题，最后写“答案是”和得数。',
    'ru': 'Решите задачу по шагам. В конце напишите «Ответ —» и число.',
    'fr': 'Résolvez le problème étape par étape. Terminez par « La réponse est » et le nombre.',
    'es': 'Resuelve el problema paso a paso. Termina con «La respuesta es» y el número.',
}


@dataclasses.dataclass(frozen=True)
class MgsmConfig:
    """How the problems are asked.

    Attributes:
        language: its code.
        max_tokens: the most of an answer.
        temperature: of what is drawn; 0 = the most probable answer.
    """

    language: str
    max_tokens: int = 1024
    temperature: float = 0.0

    def __post_init__(self):
        get_language(self.language)
        errors.check_types(STAGE, self)
        Sampling(self.max_tokens, self.temperature)


async def evaluate(
    config: MgsmConfig,
    model: Model,
    inputs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    seed: int = 0,
    concurrency: int = 64,
) -> Manifest:
    """Asks all problems; rows are {"id", "question", "answer", "text", "number", "right"}.

    Args:
        config: how.
        model: answers.
        inputs: TSV files of the original dataset: question and answer, without a header.
        output: directory for the rows.
        seed: of what the model draws.
        concurrency: requests at a time.

    Returns:
        The manifest, which counts `right` and `no number`.

    Raises:
        UserError: as `stage.run` and the model, or a row cannot be used.
        OSError: the model cannot answer.
    """
    sampling = Sampling(config.max_tokens, config.temperature, seed=seed)

    async def process(row: Row) -> Outcome:
        item = mgsm.mgsm(row)
        messages = (Message('user', prompt(item.question, config.language)),)
        reply = await model.complete(Request(STAGE, messages, sampling))
        number = final_number(reply.text, config.language)
        right = is_right(reply.text, item.answers[0], config.language)
        counts = {'right': int(right), 'no number': int(number is None)}
        made = {
            'id': f'{config.language}-{row.place.rpartition(" ")[2]}',
            'question': item.question,
            'answer': item.answers[0],
            'text': reply.text,
            'number': None if number is None else str(number),
            'right': right,
        }
        return Outcome([made], '', counts)

    return await stage.run(
        STAGE,
        process,
        inputs,
        output,
        settings=dataclasses.asdict(config) | {'llm': model.name},
        seed=seed,
        concurrency=concurrency,
        read=lambda paths: (row for path in paths for row in mgsm.read_mgsm(path)),
    )


def prompt(question: str, language: str) -> str:
    """A problem with the instruction in its language."""
    return f'{question}\n\n{INSTRUCTIONS[get_language(language).code]}'


def is_right(text: str, answer: str, language: str) -> bool:
    """Whether the number that a text ends in is the answer.

    Args:
        text: that a model wrote.
        answer: in plain digits.
        language: decides what points, commas and spaces in the text's numbers mean.
    """
    return final_number(text, language) == Decimal(answer)
