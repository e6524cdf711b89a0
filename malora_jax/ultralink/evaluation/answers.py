"""Stage `answers`: let a model answer questions, such as those of OMGEval.

The prompt is the question alone, as in AlpacaEval and OMGEval. An empty or truncated answer is kept
and counted, because without it the win rate would be that of the easier questions.
"""

import dataclasses
from collections.abc import Callable, Iterator

from malora_jax.data.file_rows import Row
from malora_jax.ultralink.llm.chat import ChatMessage, ChatSampling, ModelRequest
from malora_jax.ultralink.settings import (
    Settings,
    attempts_setting,
    setting,
    temperature_setting,
    top_p_setting,
)
from malora_jax.ultralink.shards import text_field
from malora_jax.ultralink.stage import (
    Expectation,
    ExpectedRequest,
    ItemOutcome,
    PreparedStage,
    StageRun,
    excerpt,
)

STAGE = 'answers'
# Assumed length of an answer, for estimates.
_ANSWER_TOKENS = 300
# Finish reasons of replies that are not an answer of the model: they are requested again.
_FAILURES = ('malformed', 'refused')


@dataclasses.dataclass(frozen=True)
class AnswersConfig(Settings):
    """Settings of the model requests."""

    section = STAGE
    attempts: int = attempts_setting(3)
    max_tokens: int = setting(
        'Maximum number of tokens that the model generates for an answer.', 2048, at_least=1
    )
    temperature: float = temperature_setting(0.0)
    top_p: float = top_p_setting(1.0)


def prepare(run: StageRun[AnswersConfig]) -> PreparedStage:
    """Return the function that asks the model one question.

    The function returns a row {"id", "question", "answer"}. The manifest has two counts: "empty",
    the number of empty answers, and "truncated", the number of answers of the maximum length.
    """
    config = run.config
    sampling = ChatSampling(config.max_tokens, config.temperature, config.top_p, run.seed)

    async def process(row: Row) -> ItemOutcome:
        identifier, question = text_field(row, 'id'), text_field(row, 'question')
        messages = (ChatMessage('user', question),)
        refusals = {}
        for sample in range(config.attempts):
            request = ModelRequest(STAGE, messages, sampling, sample)
            reply = await run.model.complete(request)
            if reply.finish_reason not in _FAILURES:
                break
            refusals[request] = f'no answer (finish reason {reply.finish_reason})'
        else:
            return ItemOutcome(
                reason='no answer',
                detail=reply.finish_reason,
                text=reply.text or excerpt(question),
                attempts=config.attempts,
                refusals=refusals,
            )
        counts = {
            'empty': int(not reply.text),
            'truncated': int(reply.finish_reason == 'length'),
        }
        answer_row = {'id': identifier, 'question': question, 'answer': reply.text}
        return ItemOutcome([answer_row], '', counts, refusals=refusals)

    def expected_requests(
        row: Row, count_tokens: Callable[[str], int]
    ) -> Iterator[ExpectedRequest]:
        prompt_tokens = count_tokens(text_field(row, 'question'))
        yield ExpectedRequest(prompt_tokens, min(_ANSWER_TOKENS, config.max_tokens))

    expectation = Expectation(expected_requests, f'{_ANSWER_TOKENS} tokens per answer')
    return PreparedStage(process, expectation=expectation)
