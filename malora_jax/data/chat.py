"""A model's own chat template, rendered as `transformers` renders it."""

import datetime
import functools
import json
import textwrap
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes, parser

from malora_jax.data.template_limits import LimitedEnvironment
from malora_jax.errors import UserError

# Templates that write today's date write this one, Llama 3's own default: a run can be repeated.
TODAY = datetime.date(2024, 7, 26)

# Templates of models that think before they answer leave that out.
VARIABLES = {
    'date_string': TODAY.strftime('%d %b %Y'),
    'enable_thinking': False,
    'tools': None,
    'documents': None,
}

_INSTEAD = "set data.template to 'plain' or 'chatml'"


class Chat:
    """One question and one answer in the form of a model's chat template.

    Attributes:
        end: the special token with which the template ends an answer.
    """

    def __init__(self, source: str, named_tokens: dict[str, str], special_tokens: frozenset[str]):
        """Compiles the template and finds out how it ends an answer.

        Args:
            source: the template in the language of Jinja.
            named_tokens: `bos_token` and others that the template may write.
            special_tokens: all special tokens of the tokenizer.

        Raises:
            UserError: the template is broken, writes more than white space between prompt and
                answer, or ends an answer without a special token.
        """
        self._variables = {**VARIABLES, **named_tokens}
        try:
            _environment().begin()
            self._template = _environment().from_string(source)
        except Exception as error:  # Of a template that nests too deeply, one of Python's own.
            raise UserError(
                f"The model's chat template is broken ({_line(error)}): {_INSTEAD}."
            ) from error
        answer = 'The answer.'
        before, _, after = self._rest('The question?', answer).partition(answer)
        # Of tokens that begin at the same place, the longest is the one that is recognised.
        ends = [(after.index(text), -len(text), text) for text in special_tokens if text in after]
        if before.strip() or not ends:
            raise UserError(
                "The model's chat template does not write an answer as the text that follows the "
                f'prompt, ended by a special token: {_INSTEAD}.'
            )
        at, _, self.end = min(ends)
        self._after = after[at:]

    def prompt(self, question: str) -> str:
        """What the model is given.

        Raises:
            UserError: the template cannot be rendered.
        """
        return self.render({'role': 'user', 'content': question})

    def completion(self, question: str, answer: str) -> str:
        """What the model should say, without the token that ends it and what comes later.

        Raises:
            UserError: the template cannot be rendered, writes the prompt in another way when there
                is an answer, or ends the answer in another way than others.
        """
        rest = self._rest(question, answer)
        if not rest.endswith(self._after):
            raise UserError(
                f"The model's chat template does not end the answer {answer[:40]!r} with "
                f'{self._after!r}: {_INSTEAD}.'
            )
        return rest.removesuffix(self._after)

    def next_prompt(self, *messages: dict[str, str]) -> str:
        """What stands between the end of the last answer and where the model's next turn begins.

        Args:
            messages: of user and assistant in turn; the last is the user's, and not the first.

        Raises:
            UserError: the template cannot be rendered, or writes earlier turns in another way.
        """
        *earlier, answer, _ = messages
        said = self.completion(earlier[-1]['content'], answer['content'].lstrip(' '))
        start = self.render(*earlier) + said + self.end
        whole = self.render(*messages)
        if not whole.startswith(start):
            raise UserError(
                "The model's chat template writes an answer in another way when a question "
                f'follows: {_INSTEAD}.'
            )
        return whole.removeprefix(start)

    def _rest(self, question: str, answer: str) -> str:
        prompt = self.prompt(question)
        whole = self.render(
            {'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}
        )
        if not whole.startswith(prompt):
            raise UserError(
                "The model's chat template writes the prompt in another way when there is an "
                f'answer: {_INSTEAD}.'
            )
        return whole.removeprefix(prompt)

    def render(self, *messages: dict[str, str]) -> str:
        """A conversation as text; after a message of the user, up to where the model's turn begins.

        Args:
            messages: each with its `role` and `content`.

        Raises:
            UserError: the template cannot be rendered.
        """
        prompts = messages[-1]['role'] == 'user'
        try:
            _environment().begin()
            return self._template.render(
                messages=list(messages), add_generation_prompt=prompts, **self._variables
            )
        except Exception as error:  # A template is a program and may fail in any way.
            raise UserError(
                f"The model's chat template fails ({_line(error)}): {_INSTEAD}."
            ) from error


@functools.cache
def _environment() -> LimitedEnvironment:
    """What `transformers` offers to templates, with limits and a clock that stands still."""
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.add_filter('tojson', _to_json)
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = TODAY.strftime
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model says; it changes nothing in the text."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        """The statements between the two marks."""
        next(parser.stream)
        return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's own escapes for web pages."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _line(error: Exception) -> str:
    """The message of an error on one line, shortened if it is long."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder='…')


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
