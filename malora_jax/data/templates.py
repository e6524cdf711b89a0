"""Prompt templates by name: how a question and its answer become text."""

from dataclasses import dataclass

from malora_jax.errors import unknown_name


@dataclass(frozen=True)
class Template:
    """The text around a question and its answer.

    Attributes:
        name: how configs refer to it.
        before: what precedes the question.
        between: what stands between the question and the answer; the model's turn starts after it.
        space: what the answer starts with.
        end: the token that ends the answer, or None for the tokenizer's own end of text.
    """

    name: str
    before: str
    between: str
    space: str
    end: str | None

    def prompt(self, question: str) -> str:
        """What the model is given."""
        return self.before + question + self.between

    def completion(self, answer: str) -> str:
        """What the model should say, without the token that ends it."""
        return self.space + answer


_TEMPLATES = {
    template.name: template
    for template in (
        Template(
            'chatml',
            before='<|im_start|>user\n',
            between='<|im_end|>\n<|im_start|>assistant\n',
            space='',
            end='<|im_end|>',
        ),
        Template('plain', before='Question: ', between='\nAnswer:', space=' ', end=None),
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
