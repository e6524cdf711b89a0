"""Stage `mgsm`: evaluate a chat model on MGSM (250 problems per language) with a zero-shot prompt.

A base model does better with worked examples (few-shot prompting), which `experiments.evaluate` and
`experiments.harness` use for the tasks mgsm_LANGUAGE.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

from malora_jax.data.datasets import mgsm
from malora_jax.data.file_rows import Row
from malora_jax.data.number_extraction import final_number
from malora_jax.ultralink.evaluation.file_language import check_file_language
from malora_jax.ultralink.languages import get_language
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.settings import (
    Settings,
    language_setting,
    setting,
    temperature_setting,
)
from malora_jax.ultralink.stage import (
    Expectation,
    ExpectedRequest,
    ItemOutcome,
    PreparedStage,
    StageRun,
)

STAGE = 'mgsm'
# Assumed length of a solution, for estimates.
_SOLUTION_TOKENS = 200
# A language of `number_extraction` that writes numbers with this decimal separator.
_NUMBER_LANGUAGES = {'.': 'en', ',': 'fr'}


@dataclasses.dataclass(frozen=True)
class MgsmConfig(Settings):
    """Settings of the evaluation: the language, and model requests."""

    section = STAGE
    language: str = language_setting('Language code of the problems.')
    max_tokens: int = setting(
        'Maximum number of tokens that the model generates for an answer.', 1024, at_least=1
    )
    temperature: float = temperature_setting(0.0)


def read(paths: Sequence[pathlib.Path]) -> Iterator[Row]:
    """Yield the problems in files.

    A TSV file has the columns question and answer without a header, as in the original dataset.
    Other files, such as JSON Lines, need the fields `question` and `answer_number`.

    Raises:
        UserError: A file is missing or broken.
    """
    return (row for path in paths for row in mgsm.read_mgsm(path))


def prepare(run: StageRun[MgsmConfig]) -> PreparedStage:
    """Return the function that asks the model one problem and scores its reply.

    The function returns a row {"id", "question", "answer", "text", "number", "right"}: the correct
    `answer`, the `text` of the reply, the final `number` in this text or None, and whether the
    reply is `right`. The manifest has two counts: "right", the number of correct replies, and
    "no number", the number of replies without a number.

    Raises:
        UserError: A file cannot be read, or its problems are in another language.
    """
    config = run.config
    for path in run.inputs:
        check_file_language(
            (str(row.fields.get('question', '')) for row in read([path])),
            config.language,
            f'{path}: the problems',
        )
    sampling = ChatSampling(config.max_tokens, config.temperature, seed=run.seed)

    async def process(row: Row) -> ItemOutcome:
        item = mgsm.parse_mgsm(row)
        messages = (ChatMessage('user', prompt(item.question, config.language)),)
        reply = await run.model.complete(ModelRequest(STAGE, messages, sampling))
        number = _final_number(reply.text, config.language)
        right = is_right(reply.text, item.answers[0], config.language)
        counts = {'right': int(right), 'no number': int(number is None)}
        answer_row = {
            'id': f'{config.language}-{row.location.rpartition(" ")[2]}',
            'question': item.question,
            'answer': item.answers[0],
            'text': reply.text,
            'number': None if number is None else str(number),
            'right': right,
        }
        return ItemOutcome([answer_row], '', counts)

    def expected_requests(
        row: Row, count_tokens: Callable[[str], int]
    ) -> Iterator[ExpectedRequest]:
        prompt_tokens = count_tokens(prompt(mgsm.parse_mgsm(row).question, config.language))
        yield ExpectedRequest(prompt_tokens, min(_SOLUTION_TOKENS, config.max_tokens))

    expectation = Expectation(expected_requests, f'{_SOLUTION_TOKENS} tokens per solution')
    return PreparedStage(process, expectation=expectation)


def summary(run: StageRun[MgsmConfig], manifest: StageManifest) -> str:
    """Return the accuracy as text."""
    total = manifest.total
    right, missing = total.counts['right'], total.counts['no number']
    return (
        f'{right} of {total.kept} answers correct ({right / total.kept:.1%}); '
        f'{missing} {"answer" if missing == 1 else "answers"} without a number'
    )


def prompt(question: str, language: str) -> str:
    """Return the user message: a problem, then an instruction to solve it and end with the answer.

    Args:
        question: Text of the problem.
        language: Code of the language of the problem and the instruction.
    """
    return f'{question}\n\n{get_language(language).mgsm_instruction}'


def is_right(text: str, answer: str, language: str) -> bool:
    """Return whether the final number of a text equals the answer.

    Args:
        text: Text that a model generated.
        answer: Correct answer in plain digits.
        language: Code of the language, which determines the meaning of points, commas and spaces in
            numbers.
    """
    return _final_number(text, language) == Decimal(answer)


def _final_number(text: str, language: str) -> Decimal | None:
    return final_number(text, _NUMBER_LANGUAGES[get_language(language).decimal_separator])
