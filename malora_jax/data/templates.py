"""Prompt templates by name, which turn a question and its answer into text."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from malora_jax.data.chat import VARIABLES, ChatRenderer
from malora_jax.data.tokenizer import TokenizerProtocol
from malora_jax.errors import UserError, unknown_name


class Template(Protocol):
    """Interface of a prompt template: the text around a question and its answer.

    For example::

        template = get_template('chatml')
        template.get_end_token(tokenizer)  # '<|im_end|>'
    """

    @property
    def name(self) -> str:
        """Name of the template in configs."""
        ...

    def prompt(self, tokenizer: TokenizerProtocol, question: str) -> str:
        """Return the prompt of a question, up to where the answer begins."""
        ...

    def completion(self, tokenizer: TokenizerProtocol, question: str, answer: str) -> str:
        """Return the text that the model should generate, without the token that ends it."""
        ...

    def next_prompt(
        self, tokenizer: TokenizerProtocol, messages: Sequence[Mapping[str, str]]
    ) -> str:
        """Return the part of `conversation` that follows the end of the model's last answer.

        Args:
            tokenizer: Tokenizer of the model.
            messages: Messages with `role` and `content`, alternating between user and assistant; at
                least three, the last one from the user.

        Raises:
            UserError: The template changes earlier turns when a turn is added.
        """
        ...

    def conversation(
        self, tokenizer: TokenizerProtocol, messages: Sequence[Mapping[str, str]]
    ) -> str:
        """Return the prompt of the last question, with the turns before it.

        Args:
            tokenizer: Tokenizer of the model.
            messages: Messages, each with its `role` and `content`; the last one from the user.

        Raises:
            UserError: The template does not support a message's role.
        """
        ...

    def get_end_token(self, tokenizer: TokenizerProtocol) -> str | None:
        """Return the token that ends the answer, or None for the tokenizer's end-of-text token."""
        ...

    def jinja(self, tokenizer: TokenizerProtocol) -> str:
        """Return this template as the source of a Jinja chat template, for an exported model.

        It renders messages as the method `conversation` does. The exporter adds the BOS token if
        the source does not write it.

        Args:
            tokenizer: Tokenizer of the model.
        """
        ...


@dataclass(frozen=True)
class FixedTemplate:
    """A template that is the same for all models.

    Attributes:
        name: Name of the template in configs.
        before: Text before the question.
        between: Text between the question and the answer; the model's turn starts after it.
        answer_prefix: Text at the start of the answer, such as a space.
        end_token: Token that ends the answer, or None for the tokenizer's end-of-text token.
        turn_separator: Text between the end of an answer and the next question.
    """

    name: str
    before: str
    between: str
    answer_prefix: str
    end_token: str | None
    turn_separator: str = '\n'

    def prompt(self, tokenizer: TokenizerProtocol, question: str) -> str:
        """Return the question with the template's text around it."""
        return self.before + question + self.between

    def completion(self, tokenizer: TokenizerProtocol, question: str, answer: str) -> str:
        """Return the answer with the answer prefix in front."""
        # Answers that continue a prompt, as in public datasets, may start with a space. The space
        # does not belong in a turn of its own.
        return self.answer_prefix + (answer.lstrip(' ') if self.end_token else answer)

    def next_prompt(
        self, tokenizer: TokenizerProtocol, messages: Sequence[Mapping[str, str]]
    ) -> str:
        """Return the prompt of the last message, with the turn separator in front."""
        return self.turn_separator + self.prompt(tokenizer, messages[-1]['content'])

    def conversation(
        self, tokenizer: TokenizerProtocol, messages: Sequence[Mapping[str, str]]
    ) -> str:
        """Return the text of all earlier turns, then the prompt of the last question.

        Each answer is followed by the end token, if the template has one, and by the turn
        separator. If the template has no end token, only the separator marks the end of an answer.
        Such a template is meant for single turns.

        Raises:
            UserError: A message has a role other than 'user' and 'assistant'.
        """
        text = ''
        for message in messages:
            if message['role'] == 'user':
                text += self.prompt(tokenizer, message['content'])
            elif message['role'] == 'assistant':
                answer = self.completion(tokenizer, '', message['content'])
                text += answer + (self.end_token or '') + self.turn_separator
            else:
                raise UserError(
                    f'Template {self.name!r} does not support messages of role '
                    f"{message['role']!r}, only 'user' and 'assistant'."
                )
        return text

    def get_end_token(self, tokenizer: TokenizerProtocol) -> str | None:
        """Return the template's end token, or None for the tokenizer's end-of-text token."""
        return self.end_token

    def jinja(self, tokenizer: TokenizerProtocol) -> str:
        """Return the Jinja source of this template."""
        before, between, space, after = (
            json.dumps(text, ensure_ascii=False)
            for text in (
                self.before,
                self.between,
                self.answer_prefix,
                (self.end_token or '') + self.turn_separator,
            )
        )
        answer = "message['content']" + (".lstrip(' ')" if self.end_token else '')
        unknown = json.dumps(f'Template {self.name!r} does not support messages of role ')
        return (
            '{% for message in messages %}'
            "{% if message['role'] == 'user' %}"
            f"{{{{ {before} + message['content'] + {between} }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f'{{{{ {space} + {answer} + {after} }}}}'
            '{% else %}'
            f"{{{{ raise_exception({unknown} + message['role']) }}}}"
            '{% endif %}{% endfor %}'
        )


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template that comes with the model's tokenizer.

    The template's variable `enable_thinking` is False, and its current date is always 26 July 2024.

    Attributes:
        name: Name of the template in configs.
    """

    name: str

    def prompt(self, tokenizer: TokenizerProtocol, question: str) -> str:
        """Return the prompt of a question, as the model's chat template renders it."""
        return _renderer(tokenizer).prompt(question)

    def completion(self, tokenizer: TokenizerProtocol, question: str, answer: str) -> str:
        """Return the text of the answer, as the model's chat template renders it."""
        return _renderer(tokenizer).completion(question, answer.lstrip(' '))

    def next_prompt(
        self, tokenizer: TokenizerProtocol, messages: Sequence[Mapping[str, str]]
    ) -> str:
        """Return the prompt of the last message: the text after the end token of the last answer.

        The model's chat template renders it together with the earlier turns.
        """
        return _renderer(tokenizer).next_prompt(*map(dict, messages))

    def conversation(
        self, tokenizer: TokenizerProtocol, messages: Sequence[Mapping[str, str]]
    ) -> str:
        """Return the conversation, as the model's chat template renders it."""
        return _renderer(tokenizer).render(*map(dict, messages))

    def get_end_token(self, tokenizer: TokenizerProtocol) -> str | None:
        """Return the token with which the model's chat template ends an answer."""
        return _renderer(tokenizer).end_token

    def jinja(self, tokenizer: TokenizerProtocol) -> str:
        """Return the source of the model's chat template, with defaults for its variables."""
        source, own = tokenizer.chat_template or '', tokenizer.named_tokens.get('eos_token')
        defaults = ''.join(
            f'{{% if {name} is not defined %}}{{% set {name} = {json.dumps(value)} %}}{{% endif %}}'
            for name, value in VARIABLES.items()
            if value is not None and name in source
        )
        # An exported model uses the end token of the template as its `eos_token`, so the original
        # `eos_token` must be set for the template.
        if 'eos_token' in source and own != self.get_end_token(tokenizer):
            defaults += f'{{% set eos_token = {json.dumps(own)} %}}'
        # Jinja drops a line break right after a block; the empty expression at the end of the
        # defaults keeps one at the beginning of the source.
        return (defaults and defaults + "{{ '' }}") + source


def _renderer(tokenizer: TokenizerProtocol) -> ChatRenderer:
    """Return the compiled chat template of a tokenizer.

    Raises:
        UserError: The tokenizer has no chat template, or one that cannot be used.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "data.template is 'chat', but the model comes without a chat template: set it to "
            "'plain' or 'chatml'."
        )
    named = tuple(tokenizer.named_tokens.items())
    return _compiled(tokenizer.chat_template, named, tokenizer.special_tokens)


@functools.lru_cache(maxsize=1)
def _compiled(
    source: str, named: tuple[tuple[str, str], ...], special: frozenset[str]
) -> ChatRenderer:
    return ChatRenderer(source, dict(named), special)


_TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        FixedTemplate(
            'chatml',
            before='<|im_start|>user\n',
            between='<|im_end|>\n<|im_start|>assistant\n',
            answer_prefix='',
            end_token='<|im_end|>',
        ),
        # Template of Llama 2 without a system message, as used by UltraLink-LM.
        FixedTemplate(
            'inst',
            before='[INST] ',
            between=' [/INST]',
            answer_prefix=' ',
            end_token='</s>',
            turn_separator='<s>',
        ),
        # For public datasets, whose prompt forms are complete prompts.
        FixedTemplate('bare', before='', between='', answer_prefix='', end_token=None),
        FixedTemplate(
            'plain', before='Question: ', between='\nAnswer:', answer_prefix=' ', end_token=None
        ),
        ChatTemplate('chat'),
    )
}


def get_template(name: str) -> Template:
    r"""Return the prompt template with that name.

    For example::

        get_template('plain').prompt(tokenizer, 'Why?')  # 'Question: Why?\nAnswer:'

    Raises:
        UserError: There is no such template.
    """
    if name not in _TEMPLATES:
        raise unknown_name('template', name, _TEMPLATES)
    return _TEMPLATES[name]
