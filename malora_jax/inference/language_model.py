"""A trained model as one object that answers, scores and chats."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from malora_jax import buckets, data, errors
from malora_jax.data import Example, Template
from malora_jax.evaluation.likelihood import Likelihood, log_likelihoods
from malora_jax.export.trained import Saved
from malora_jax.models import Decoder
from malora_jax.models.engine import Engine, Request
from malora_jax.models.generate import Generator
from malora_jax.models.loading.tokenizer import Tokenizer
from malora_jax.models.loading.weights import load_base
from malora_jax.models.sampling import check_sampling
from malora_jax.models.texts import Ending, TextStream
from malora_jax.training.restore import saved_model

# Texts are scored several a row of so many positions.
_ROW = 128


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a text is written.

    Attributes:
        max_new_tokens: the most tokens.
        temperature: what logits are divided by before a token is drawn; 0 = each token is the most
            probable one.
        top_k: tokens are drawn from so many, the most probable ones; 0 = from all.
        top_p: tokens are drawn from the most probable ones, as few as together have at least this
            probability.
        stop: a text ends before the first of these.
        seed: of what is drawn.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise errors.out_of_range('max_new_tokens', self.max_new_tokens, 'at least 1')
        check_sampling(1, self.temperature, self.top_k, self.top_p)

    def request(self, prompt: Sequence[int], key: jax.Array | None) -> Request:
        """What is asked of an engine; without heat no key is needed."""
        return Request(prompt, self.max_new_tokens, self.temperature, self.top_k, self.top_p, key)


class LanguageModel:
    """A model with its tokenizer and the template that it was trained with.

    Attributes:
        name: what it is called.
        model: the decoder, with the adapter.
        variables: its collections.
        tokenizer: of the base.
        template: the text around questions and answers.
        batch_size: answers that are written side by side.
    """

    def __init__(
        self,
        name: str,
        model: Decoder,
        variables: Any,
        tokenizer: Tokenizer,
        template: Template,
        batch_size: int = 8,
    ):
        self.name = name
        self.model = model
        self.variables = variables
        self.tokenizer = tokenizer
        self.template = template
        self.batch_size = batch_size
        self.end_id = data.end_id(tokenizer, template)

    @property
    def most_characters(self) -> int:
        """Number of characters that fit into the context, if every token is the longest one."""
        return self.model.config.context * self.tokenizer.longest_token

    def base(self) -> 'LanguageModel':
        """The base model alone, by its own name, in the same template."""
        config, params = self.model.config, self.variables['params']
        return LanguageModel(
            config.name, Decoder(config), {'params': params}, self.tokenizer, self.template
        )

    def prompt(self, question: str | Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens that an answer goes on from.

        Args:
            question: put into the template; or a conversation, messages each with its `role` and
                `content`, of which the last is the user's.

        Raises:
            UserError: a conversation that is none, or that the template has no place for.
        """
        if isinstance(question, str):
            return data.encode_prompt(self.tokenizer, self.template, question)
        _check_conversation(question)
        return self.tokens(self.template.conversation(self.tokenizer, question))

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text as it stands, after a bos token where texts start with one."""
        return data.with_bos(self.tokenizer, self.tokenizer.encode(text))

    def generate(
        self, questions: Sequence[str], description: str | None = None, **sampling: Any
    ) -> list[str]:
        """The answer to each question.

        Args:
            questions: each put into the template.
            description: what a progress bar says; None = there is none.
            **sampling: fields of `Sampling`.

        Raises:
            UserError: a field out of range, or a question and its answer might not fit into the
                model's context.
        """
        if isinstance(questions, str):
            raise TypeError('generate takes a list of questions.')
        how = Sampling(**sampling)
        generator = Generator(
            self.model,
            self.end_id,
            batch_size=self.batch_size,
            max_new_tokens=how.max_new_tokens,
        )
        texts = generator.texts(
            self.variables,
            [self.prompt(question) for question in questions],
            self.tokenizer,
            stop=how.stop,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            seed=how.seed,
            description=description,
        )
        return [text.strip() for (text,) in texts]

    def chat(self, messages: str | Sequence[Mapping[str, str]], **sampling: Any) -> str:
        """The next turn of a conversation.

        Args:
            messages: as for `stream`.
            **sampling: fields of `Sampling`.
        """
        return ''.join(self.stream(messages, Sampling(**sampling))).strip()

    def stream(self, messages: str | Sequence[Mapping[str, str]], how: Sampling) -> Iterator[str]:
        """The next turn of a conversation, piece by piece as it is written.

        Args:
            messages: each with its `role` and `content`, the last the user's; or a question.
            how: it is written.

        Raises:
            UserError: as for `prompt` and `generate`.
        """
        prompt = self.prompt(messages)
        engine = Engine(self.model, self.variables, [self.end_id], 1)
        engine.submit(how.request(prompt, jax.random.key(how.seed)))
        text = TextStream(Ending(self.tokenizer, tuple(how.stop)))
        return _pieces(engine, text)

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> list[Likelihood]:
        """How likely the model finds each answer to its question, the token that ends it included.

        Args:
            questions: each put into the template.
            answers: one for each.
        """
        requests = []
        for question, answer in zip(questions, answers, strict=True):
            example = Example(question, answer, {})
            completion = data.encode_completion(self.tokenizer, self.template, example)
            requests.append((self.prompt(question), [*completion, self.end_id]))
        return log_likelihoods(
            self.model, self.variables, requests, batch_size=self.batch_size, bucket=_ROW
        )


def load(directory: str | os.PathLike[str], weights: str | None = None) -> LanguageModel:
    """A trained model: that of a run, its best checkpoint or its newest; or an exported adapter.

    Args:
        directory: what --workdir named, or --output of an export as `adapter`.
        weights: where the base's weights are, if not where they were in training.

    Raises:
        UserError: the directory holds neither, or the base cannot be loaded, or is another one.
    """
    return load_all([directory], weights)[0]


def load_all(
    directories: Sequence[str | os.PathLike[str]], weights: str | None = None
) -> list[LanguageModel]:
    """Trained models on one base, which is in memory once; each is named by its directory.

    Raises:
        UserError: as `load`, or the models have different bases.
    """
    paths = [buckets.local(directory) for directory in directories]
    saved = [saved_model(path, weights) for path in paths]
    first = saved[0]
    for each in saved:
        if (each.model, each.weights) != (first.model, first.weights):
            raise errors.UserError(
                f'{first.path} and {each.path} have different bases: {_base_name(first)} and '
                f'{_base_name(each)}.'
            )
    base = load_base(first.model, first.weights)
    models = []
    for path, each in zip(paths, saved, strict=True):
        found = each.restore(base)
        name = path.resolve().name
        models.append(
            LanguageModel(name, found.model, found.variables, base.tokenizer, found.template)
        )
    return models


def _base_name(saved: Saved) -> str:
    where = f' from {saved.weights}' if saved.weights else ''
    kept = saved.model.quantize or saved.model.dtype
    return f'{saved.model.name} in {kept}{where}'


def _pieces(engine: Engine, text: TextStream) -> Iterator[str]:
    """The text that the engine writes, without white space before it."""
    begun = False
    while not engine.is_idle:
        for news in engine.step():
            piece = text.add([token.id for token in news.tokens])
            if text.is_over and news.finish is None:
                engine.cancel(news.number)
            elif news.finish:
                piece += text.rest()
            if not begun:
                piece = piece.lstrip()
            if piece:
                begun = True
                yield piece


def _check_conversation(messages: Sequence[Mapping[str, str]]) -> None:
    for i, message in enumerate(messages, start=1):
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(key), str) for key in ('role', 'content')):
            raise errors.UserError(f'Message {i} must have a role and a content, both texts.')
    if not messages or messages[-1]['role'] != 'user':
        raise errors.UserError("A conversation must end with a message of role 'user'.")
