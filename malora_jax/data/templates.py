"""Prompt templates by name: how a question and its answer become text."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from malora_jax.data.chat import VARIABLES, Chat
from malora_jax.data.tokenizer import Tokenizer
from malora_jax.errors import UserError, unknown_name


class Template(Protocol):
    """The text around a question and its answer."""

    @property
    def name(self) -> str:
        """How configs refer to it."""
        ...

    def prompt(self, tokenizer: Tokenizer, question: str) -> str:
        """What the model is given."""
        ...

    def completion(self, tokenizer: Tokenizer, question: str, answer: str) -> str:
        """What the model should say, without the token that ends it."""
        ...

    def next_prompt(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
        """What the model is given after the end of its last answer: the rest of `conversation`.

        Args:
            tokenizer: of the model.
            messages: of user and assistant in turn; the last is the user's, and not the first.

        Raises:
            UserError: the template writes earlier turns otherwise once there is a later one.
        """
        ...

    def conversation(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
        """What the model is given after some turns.

        Args:
            tokenizer: of the model.
            messages: each with its `role` and `content`; the last is the user's.

        Raises:
            UserError: a role that the template has no place for.
        """
        ...

    def end(self, tokenizer: Tokenizer) -> str | None:
        """The token that ends the answer, or None for the tokenizer's own end of text."""
        ...

    def jinja(self, tokenizer: Tokenizer) -> str:
        """Return `conversation` in the language of Jinja, without the token that texts start with.

        Args:
            tokenizer: of the model.
        """
        ...


@dataclass(frozen=True)
class FixedTemplate:
    """A template that is the same for all models.

    Attributes:
        name: how configs refer to it.
        before: what precedes the question.
        between: what stands between the question and the answer; the model's turn starts after it.
        space: what the answer starts with.
        end_token: the token that ends the answer, or None for the tokenizer's own end of text.
        gap: what stands between the end of an answer and the next question.
    """

    name: str
    before: str
    between: str
    space: str
    end_token: str | None
    gap: str = '\n'

    def prompt(self, tokenizer: Tokenizer, question: str) -> str:
        """See `Template`."""
        return self.before + question + self.between

    def completion(self, tokenizer: Tokenizer, question: str, answer: str) -> str:
        """See `Template`."""
        # The space before an answer that goes on a prompt has no place in a turn of its own.
        return self.space + (answer.lstrip(' ') if self.end_token else answer)

    def next_prompt(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Template`."""
        return self.gap + self.prompt(tokenizer, messages[-1]['content'])

    def conversation(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Template`. The turns before the last stand in front of it, a gap after each.

        A template without an end token was trained on single turns: nothing marks their end here.
        """
        text = ''
        for message in messages:
            if message['role'] == 'user':
                text += self.prompt(tokenizer, message['content'])
            elif message['role'] == 'assistant':
                answer = self.completion(tokenizer, '', message['content'])
                text += answer + (self.end_token or '') + self.gap
            else:
                raise UserError(
                    f'Template {self.name!r} has no place for a message of role '
                    f"{message['role']!r}, only for 'user' and 'assistant'."
                )
        return text

    def end(self, tokenizer: Tokenizer) -> str | None:
        """See `Template`."""
        return self.end_token

    def jinja(self, tokenizer: Tokenizer) -> str:
        """See `Template`."""
        before, between, space, after = (
            json.dumps(text, ensure_ascii=False)
            for text in (self.before, self.between, self.space, (self.end_token or '') + self.gap)
        )
        answer = "message['content']" + (".lstrip(' ')" if self.end_token else '')
        unknown = json.dumps(f'Template {self.name!r} has no place for a message of role ')
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
    """The template that comes with the model's tokenizer.

    Of its parameters, `enable_thinking` is False, and today is always 26 July 2024.

    Attributes:
        name: how configs refer to it.
    """

    name: str

    def prompt(self, tokenizer: Tokenizer, question: str) -> str:
        """See `Template`."""
        return _chat(tokenizer).prompt(question)

    def completion(self, tokenizer: Tokenizer, question: str, answer: str) -> str:
        """See `Template`."""
        return _chat(tokenizer).completion(question, answer.lstrip(' '))

    def next_prompt(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Template`."""
        return _chat(tokenizer).next_prompt(*map(dict, messages))

    def conversation(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Template`."""
        return _chat(tokenizer).render(*map(dict, messages))

    def end(self, tokenizer: Tokenizer) -> str | None:
        """See `Template`."""
        return _chat(tokenizer).end

    def jinja(self, tokenizer: Tokenizer) -> str:
        """See `Template`: the model's own, with defaults for what else would not be as here."""
        source, own = tokenizer.chat_template or '', tokenizer.named_tokens.get('eos_token')
        defaults = ''.join(
            f'{{% if {name} is not defined %}}{{% set {name} = {json.dumps(value)} %}}{{% endif %}}'
            for name, value in VARIABLES.items()
            if value is not None and name in source
        )
        # Of an exported model, the token that ends an answer is the one that ends a text.
        if 'eos_token' in source and own != self.end(tokenizer):
            defaults += f'{{% set eos_token = {json.dumps(own)} %}}'
        # What is written last keeps a line break at the beginning of the source.
        return (defaults and defaults + "{{ '' }}") + source


def _chat(tokenizer: Tokenizer) -> Chat:
    """The chat template of a tokenizer.

    Raises:
        UserError: it has none, or one that cannot be used.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "data.template is 'chat', but the model comes without a chat template: set it to "
            "'plain' or 'chatml'."
        )
    named = tuple(tokenizer.named_tokens.items())
    return _compiled(tokenizer.chat_template, named, tokenizer.special_tokens)


@functools.lru_cache(maxsize=1)
def _compiled(source: str, named: tuple[tuple[str, str], ...], special: frozenset[str]) -> Chat:
    return Chat(source, dict(named), special)


_TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        FixedTemplate(
            'chatml',
            before='<|im_start|>user\n',
            between='<|im_end|>\n<|im_start|>assistant\n',
            space='',
            end_token='<|im_end|>',
        ),
        # Llama 2's without a system message, as UltraLink-LM has it.
        FixedTemplate(
            'inst',
            before='[INST] ',
            between=' [/INST]',
            space=' ',
            end_token='</s>',
            gap='<s>',
        ),
        # For public datasets, whose forms are whole prompts.
        FixedTemplate('bare', before='', between='', space='', end_token=None),
        FixedTemplate('plain', before='Question: ', between='\nAnswer:', space=' ', end_token=None),
        ChatTemplate('chat'),
    )
}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        UserError: there is none.
    """
    if name not in _TEMPLATES:
        raise unknown_name('template', name, _TEMPLATES)
    return _TEMPLATES[name]
