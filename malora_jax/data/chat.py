"""Chat templates that come with a model, rendered as `transformers` renders them."""

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

# Date for templates that print today's date. It is fixed so that runs are reproducible; Llama 3's
# template has the same default.
FIXED_DATE = datetime.date(2024, 7, 26)

# Values of optional template variables. `enable_thinking` turns off the reasoning text of models
# that think before they answer.
VARIABLES = {
    'date_string': FIXED_DATE.strftime('%d %b %Y'),
    'enable_thinking': False,
    'tools': None,
    'documents': None,
}

_REMEDY = "set data.template to 'plain' or 'chatml'"


class ChatRenderer:
    """A compiled chat template that renders prompts, answers and conversations as text.

    Attributes:
        end_token: Special token with which the template ends an answer.
    """

    def __init__(self, source: str, named_tokens: dict[str, str], special_tokens: frozenset[str]):
        """Compile the template and find the token that ends an answer.

        Args:
            source: Jinja source of the template.
            named_tokens: Special tokens that the template may refer to, by name, such as
                `bos_token`.
            special_tokens: Text of all special tokens of the tokenizer.

        Raises:
            UserError: The template is broken, writes more than white space between prompt and
                answer, or ends an answer without a special token.
        """
        self._variables = {**VARIABLES, **named_tokens}
        try:
            _environment().restart_timer()
            self._template = _environment().from_string(source)
        except Exception as error:  # Deeply nested templates raise errors of Python itself.
            raise UserError(
                f"The model's chat template is broken ({_line(error)}): {_REMEDY}."
            ) from error
        answer = 'The answer.'
        before, _, after = self._rest('The question?', answer).partition(answer)
        # If several tokens begin at the same place, the tokenizer recognizes the longest one.
        ends = [(after.index(text), -len(text), text) for text in special_tokens if text in after]
        if before.strip() or not ends:
            raise UserError(
                "The model's chat template must render the answer directly after the prompt and "
                f'end it with a special token: {_REMEDY}.'
            )
        at, _, self.end_token = min(ends)
        self._after = after[at:]

    def prompt(self, question: str) -> str:
        """Return the prompt, up to where the model's answer begins.

        Raises:
            UserError: The template cannot be rendered.
        """
        return self.render({'role': 'user', 'content': question})

    def completion(self, question: str, answer: str) -> str:
        """Return the text of the model's answer, without the end token and what follows it.

        Raises:
            UserError: The template cannot be rendered, or renders the prompt differently when an
                answer follows. Or the text after this answer differs from the text that the
                template wrote after the test answer in `__init__`.
        """
        rest = self._rest(question, answer)
        if not rest.endswith(self._after):
            raise UserError(
                f"The model's chat template does not end the answer {answer[:40]!r} with "
                f'{self._after!r}: {_REMEDY}.'
            )
        return rest.removesuffix(self._after)

    def next_prompt(self, *messages: dict[str, str]) -> str:
        """Return the prompt of a question that follows earlier turns.

        The prompt begins after the end token of the model's last answer. It contains the user's
        question, and ends where the model's next answer begins.

        Args:
            messages: Messages with `role` and `content`, alternating between user and assistant; at
                least three, the last one from the user.

        Raises:
            UserError: The template cannot be rendered, or changes earlier turns when a turn is
                added.
        """
        *earlier, answer, _ = messages
        said = self.completion(earlier[-1]['content'], answer['content'].lstrip(' '))
        start = self.render(*earlier) + said + self.end_token
        whole = self.render(*messages)
        if not whole.startswith(start):
            raise UserError(
                "The model's chat template renders an answer differently when another question "
                f'follows: {_REMEDY}.'
            )
        return whole.removeprefix(start)

    def _rest(self, question: str, answer: str) -> str:
        """Return the rendered text after the prompt: the answer and the text that ends it."""
        prompt = self.prompt(question)
        whole = self.render(
            {'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}
        )
        if not whole.startswith(prompt):
            raise UserError(
                "The model's chat template renders the prompt differently when an answer "
                f'follows: {_REMEDY}.'
            )
        return whole.removeprefix(prompt)

    def render(self, *messages: dict[str, str]) -> str:
        """Return a conversation as text.

        After a last message from the user, the text ends with the start of the model's turn.

        Args:
            messages: Messages, each with its `role` and `content`.

        Raises:
            UserError: The template cannot be rendered.
        """
        ends_with_user = messages[-1]['role'] == 'user'
        try:
            _environment().restart_timer()
            return self._template.render(
                messages=list(messages), add_generation_prompt=ends_with_user, **self._variables
            )
        except Exception as error:  # A template is a program and may raise any exception.
            raise UserError(
                f"The model's chat template fails ({_line(error)}): {_REMEDY}."
            ) from error


@functools.cache
def _environment() -> LimitedEnvironment:
    """Return a Jinja environment set up as in `transformers`, with limits on time and memory.

    A template that asks for today's date always gets `FIXED_DATE`, so that runs are reproducible.
    """
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.add_filter('tojson', _to_json)
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = FIXED_DATE.strftime
    return environment


class _Generation(jinja2.ext.Extension):
    """Jinja extension for `{% generation %}`, which marks the model's text without changing it."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        """Return the statements between `{% generation %}` and `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return the value as JSON, without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _line(error: Exception) -> str:
    """Return the message of an error on one line, shortened if it is long."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder='…')


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
