"""OMGEval's protocol of the stage `judge`: its templates, AlpacaEval's verdicts and win rate.

OMGEval publishes questions, answers and the templates of the judge's prompt, but no program
(github.com/blcuicall/OMGEval at commit f4dfb6d). Its templates are translations of AlpacaEval's
`alpaca_eval_gpt4`, and its README reports AlpacaEval's `win_rate` and `standard_error`. So the rest
follows AlpacaEval (github.com/tatsu-lab/alpaca_eval at commit cd543a1, src/alpaca_eval):

- One request per pair, with at most 100 tokens at temperature 0, and no second attempt
  (evaluators_configs/alpaca_eval_gpt4/configs.yaml). Equal answers are a tie without a request
  (annotators/pairwise_evaluator.py).
- The question decides at random which answer is shown first (RandomSwitchTwoColumnsProcessor in
  processors.py). With seed 0, it is the same answer as in AlpacaEval.
- The reply must be a Python literal with the ranks 1 or 2 of the models. Any other reply is no
  verdict (ranking_parser in completion_parsers.py), and the pair does not count.
- The win rate is the mean of 1, 0.5 and 0, and the standard error is that of the mean, with n - 1
  degrees of freedom (metrics/helpers.py).

AlpacaEval merges both files by question, so that it would compare the two answers to a repeated
question in four pairs. Here they make two.
"""

import ast
import pathlib
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from malora_jax.data.file_rows import check_file
from malora_jax.errors import UserError
from malora_jax.ultralink import shards
from malora_jax.ultralink.evaluation.answer_pairs import AnswerPair
from malora_jax.ultralink.evaluation.file_language import check_file_language
from malora_jax.ultralink.evaluation.judge_protocol import JudgeProtocol
from malora_jax.ultralink.llm.chat import ChatMessage, Reply

# Names of the texts that a template must have once each.
_PLACEHOLDERS = ('instruction', 'output_1', 'output_2')
_PLACEHOLDER = re.compile('|'.join(f'{{({name})}}' for name in _PLACEHOLDERS))
_MESSAGE = re.compile(r'<\|im_start\|>(\w+)[^\n]*\n(.*?)<\|im_end\|>', re.DOTALL)
# Example of a template, for messages.
_TEMPLATE_EXAMPLE = (
    'such as evaluator_prompts/gpt4_template/fr.txt in a copy of github.com/blcuicall/OMGEval'
)


def protocol(path: pathlib.Path | None, language: str, seed: int) -> JudgeProtocol:
    """Return OMGEval's protocol.

    Args:
        path: Template of the judge's prompt.
        language: Code of the language of the questions and of the template.
        seed: Random seed of the orders.

    Raises:
        UserError: There is no template, it cannot be used, or it is in another language.
    """
    if path is None:
        raise UserError(f'--protocol=omgeval needs --template=FILE, {_TEMPLATE_EXAMPLE}.')
    template = read_template(path)
    check_file_language(
        [message.content for message in template.messages],
        language,
        f'{path}: the texts of the template',
    )

    def orders(pair: AnswerPair) -> Sequence[bool]:
        if pair.answer == pair.baseline_answer:
            return []
        return [answer_is_first(pair.question, seed)]

    return JudgeProtocol(template.fill, parse_ranking, orders, shards.digest([path]))


class Template(NamedTuple):
    """Messages of the judge's prompt, with places for the question and both answers.

    Attributes:
        messages: Messages with the placeholders {instruction}, {output_1} and {output_2}.
    """

    messages: tuple[ChatMessage, ...]

    def fill(self, question: str, first: str, second: str) -> tuple[ChatMessage, ...]:
        """Return the messages about a question and two answers."""
        texts = dict(zip(_PLACEHOLDERS, (question, first, second), strict=True))
        return tuple(
            ChatMessage(
                message.role,
                # A function as replacement, because answers may contain backslashes.
                _PLACEHOLDER.sub(lambda match: texts[match[0][1:-1]], message.content),
            )
            for message in self.messages
        )


def read_template(path: pathlib.Path) -> Template:
    """Read a template in the format of OMGEval and AlpacaEval.

    Args:
        path: UTF-8 text file with <|im_start|>ROLE, the text and <|im_end|> for each message.

    Raises:
        UserError: There is no such file, it is not in this format, or a placeholder is missing or
            repeated.
    """
    check_file(path)
    try:
        text = path.read_text('utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8.') from error
    messages = tuple(ChatMessage(role, content.strip()) for role, content in _MESSAGE.findall(text))
    if {message.role for message in messages} - {'system', 'user', 'assistant'} or (
        not messages or messages[-1].role != 'user'
    ):
        raise UserError(
            f'{path} is not a template of OMGEval, which has messages <|im_start|>system … '
            f'<|im_end|> and <|im_start|>user … <|im_end|>; give its file, {_TEMPLATE_EXAMPLE}.'
        )
    content = '\n'.join(message.content for message in messages)
    for name in _PLACEHOLDERS:
        if content.count(f'{{{name}}}') != 1:
            raise UserError(
                f'{path} has {{{name}}} {content.count(f"{{{name}}}")} times; a template has each '
                f'of {{{"}, {".join(_PLACEHOLDERS)}}} once.'
            )
    return Template(messages)


def answer_is_first(question: str, seed: int) -> bool:
    """Return whether the judged answer is shown before the baseline's.

    Args:
        question: Question, which decides the order.
        seed: Random seed of the run; 0 gives AlpacaEval's order.
    """
    # AlpacaEval shows the baseline first, unless it switches the order.
    return random.Random(f'is_switched_outputs{question}{seed}').choices([False, True])[0]


def parse_ranking(reply: Reply) -> int | None:
    """Parse a judge's ranking, such as [{'model': 'model_1', 'rank': 2}, …].

    Returns:
        Points of the verdict: 1 if the first answer has rank 1, -1 if it has rank 2; None if the
        reply is not a Python literal with this rank.
    """
    try:
        ranking = ast.literal_eval(reply.text)
        first, *_ = (each['rank'] for each in ranking if each['model'] == 'model_1')
        return {1: 1, 2: -1}.get(first)
    except (LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return None
