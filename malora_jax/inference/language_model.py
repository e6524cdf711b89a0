"""High-level interface to a trained model: generate, chat, stream and score."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from malora_jax import cloud_storage, data, errors
from malora_jax.data import Example, Template
from malora_jax.distributed import hosts
from malora_jax.evaluation.likelihood import Likelihood, log_likelihoods
from malora_jax.export.trained_model import StoredModel, TrainedModel
from malora_jax.models import Decoder
from malora_jax.models.detokenization import StopCondition, TextStream
from malora_jax.models.engine import Engine, GenerationRequest
from malora_jax.models.generate import Generator
from malora_jax.models.loading.base_model import load_base
from malora_jax.models.loading.tokenizer import Tokenizer
from malora_jax.models.sampling import check_sampling
from malora_jax.training.restore import saved_model

# `score` packs several texts into each row. Row lengths are multiples of this number of tokens,
# which limits the number of shapes to compile.
_ROW_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Settings of text generation.

    Attributes:
        max_new_tokens: Maximum number of generated tokens.
        temperature: Sampling temperature, by which logits are divided; 0 = greedy decoding.
        top_k: Top-k sampling: number of most probable tokens to sample from, plus any that tie with
            the last of them; 0 = all tokens.
        top_p: Nucleus sampling, after top-k: sample from the smallest set of most probable tokens
            whose probabilities sum to at least this; 1 = all tokens.
        stop: Stop strings; a text ends before the first of them.
        seed: Random seed for sampling.

    Raises:
        UserError: A value is out of range.
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

    def request(self, prompt: Sequence[int], key: jax.Array | None) -> GenerationRequest:
        """Return an `Engine` request that continues a prompt with these settings.

        Args:
            prompt: Token ids, at least one.
            key: PRNG key for sampling; may be None if the temperature is 0.
        """
        return GenerationRequest(
            prompt, self.max_new_tokens, self.temperature, self.top_k, self.top_p, key
        )


class LanguageModel:
    """A language model: decoder, weights, tokenizer and prompt template.

    For example:

        model = malora_jax.load('runs/malora')
        model.generate(['What is 2 + 3?'], max_new_tokens=32)
        model.chat('Name a prime number.', temperature=0.7, top_p=0.9)
        model.score(['What is 2 + 3?'], ['5'])[0].log_probability

    Attributes:
        name: Name of the model; `load` uses the name of its directory.
        model: Decoder, with or without an adapter.
        variables: Variable collections of the decoder: the weights of base model and adapter.
        tokenizer: Tokenizer of the base model.
        template: Prompt template that the model was trained with.
        batch_size: Number of answers that are generated together by continuous batching.
        end_id: Id of the token that ends an answer.
    """

    def __init__(
        self,
        name: str,
        model: Decoder,
        variables: Any,
        tokenizer: Tokenizer,
        template: Template,
        batch_size: int = 32,
    ):
        self.name = name
        self.model = model
        self.variables = variables
        self.tokenizer = tokenizer
        self.template = template
        self.batch_size = batch_size
        self.end_id = data.end_token_id(tokenizer, template)

    @property
    def max_characters(self) -> int:
        """Upper bound of the number of characters that fit into the context.

        A longer text cannot fit, so it can be rejected without tokenizing it. The bound is the
        context length times the length of the longest vocabulary entry.
        """
        return self.model.config.context * self.tokenizer.max_token_chars

    def base(self) -> 'LanguageModel':
        """Return the base model without the adapter; the template stays the same."""
        config, params = self.model.config, self.variables['params']
        model = Decoder(config, attention=self.model.attention)
        return LanguageModel(config.name, model, {'params': params}, self.tokenizer, self.template)

    def encode_prompt(self, question: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a question or a conversation in the prompt template.

        Args:
            question: Question; or a conversation: a list of messages, each with a `role` and a
                `content`, of which the last is the user's.

        Raises:
            UserError: The conversation is malformed, or the template does not support it.
        """
        if isinstance(question, str):
            return data.encode_prompt(self.tokenizer, self.template, question)
        _check_conversation(question)
        return self.encode_text(self.template.conversation(self.tokenizer, question))

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text without the template.

        They start with a bos token if the tokenizer adds one.
        """
        return data.with_bos(self.tokenizer, self.tokenizer.encode(text))

    def generate(
        self, questions: Sequence[str], description: str | None = None, **sampling: Any
    ) -> list[str]:
        """Generate an answer to each question, with continuous batching.

        Args:
            questions: Questions, which are put into the template.
            description: Label of the progress bar; None = no progress bar.
            **sampling: Fields of `GenerationConfig`.

        Returns:
            Answers, without leading and trailing white space, in the order of the questions.

        Raises:
            UserError: A field is out of range, or a question with an answer of maximum length
                exceeds the model's context length.
            TypeError: `questions` is a single string.
        """
        if isinstance(questions, str):
            raise TypeError('generate takes a list of questions.')
        config = GenerationConfig(**sampling)
        generator = Generator(
            self.model,
            self.end_id,
            batch_size=self.batch_size,
            max_new_tokens=config.max_new_tokens,
        )
        with hosts.progress_bar(description, len(questions), 'answer') as bar:
            texts = generator.generate_texts(
                self.variables,
                [self.encode_prompt(question) for question in questions],
                self.tokenizer,
                stop=config.stop,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                seed=config.seed,
                advance=bar.advance,
            )
        return [text.strip() for (text,) in texts]

    def chat(self, messages: str | Sequence[Mapping[str, str]], **sampling: Any) -> str:
        """Generate the model's next turn of a conversation.

        Args:
            messages: Question; or a list of messages, each with a `role` and a `content`, of which
                the last is the user's.
            **sampling: Fields of `GenerationConfig`.

        Raises:
            UserError: The conversation is malformed or too long, or a field is out of range.
        """
        return ''.join(self.stream(messages, GenerationConfig(**sampling))).strip()

    def stream(
        self, messages: str | Sequence[Mapping[str, str]], config: GenerationConfig
    ) -> Iterator[str]:
        """Generate the model's next turn of a conversation, and stream its text.

        Args:
            messages: Question; or a list of messages, each with a `role` and a `content`, of which
                the last is the user's.
            config: Generation settings.

        Returns:
            Iterator over the pieces of the text. Each piece is generated when the caller asks the
            iterator for it.

        Raises:
            UserError: The conversation is malformed or too long, or the template does not support
                it.
        """
        prompt = self.encode_prompt(messages)
        engine = Engine(self.model, self.variables, [self.end_id], 1)
        engine.submit(config.request(prompt, jax.random.key(config.seed)))
        text = TextStream(StopCondition(self.tokenizer, tuple(config.stop)))
        return _stream_text(engine, text)

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> list[Likelihood]:
        """Return the log-likelihood of each answer to its question, including the end token.

        If a prompt (the template with the question) and its answer together exceed the model's
        context length, the start of the prompt is cut off.

        Args:
            questions: Questions, which are put into the template.
            answers: Answer to each question.

        Raises:
            UserError: An answer has more tokens than the model's context length.
        """
        requests = []
        for question, answer in zip(questions, answers, strict=True):
            example = Example(question, answer, {})
            completion = data.encode_completion(self.tokenizer, self.template, example)
            requests.append((self.encode_prompt(question), [*completion, self.end_id]))
        return log_likelihoods(
            self.model,
            self.variables,
            requests,
            batch_size=self.batch_size,
            pad_multiple=_ROW_MULTIPLE,
        )


def load(
    directory: str | os.PathLike[str], weights: str | None = None, task: str = ''
) -> LanguageModel:
    """Load a trained model: a run's best checkpoint (or else its newest), or an exported adapter.

    For example:

        model = load('runs/malora')

    Args:
        directory: Directory of a training run, or directory of an adapter that was exported in
            format `adapter`.
        weights: Path or Hub name of the base model's weights, as in `model.weights` of a config;
            None = the location used in training.
        task: Name of the task whose model is loaded, if the adapter has parameters for each task;
            else ''.

    Raises:
        UserError: The directory contains neither a run nor an exported adapter; or the base model
            cannot be loaded, or differs from the one that the adapter was trained on; or the task
            is missing or unknown.
    """
    ((name, trained),) = _restore_all([directory], weights)
    return _language_model(f'{name}:{task}' if task else name, trained.for_task(task))


def load_all(
    directories: Sequence[str | os.PathLike[str]], weights: str | None = None
) -> list[LanguageModel]:
    """Load trained models that share one base model in memory.

    For example:

        malora, lora = load_all(['runs/malora', 'runs/lora'])

    Args:
        directories: Directories of runs or of exported adapters. Each model is named after its
            directory.
        weights: Path or Hub name of the base model's weights, as in `model.weights` of a config;
            None = the location used in training.

    Returns:
        The models, in the order of `directories`. If an adapter has parameters for each task, there
        is a model for each task, with the name DIRECTORY:TASK.

    Raises:
        UserError: A model cannot be loaded, or the models have different base models.
    """
    models = []
    for name, trained in _restore_all(directories, weights):
        adapter = trained.model.adapter
        tasks = adapter.tasks if adapter is not None else ()
        models += [_language_model(f'{name}:{each}', trained.for_task(each)) for each in tasks]
        if not tasks:
            models.append(_language_model(name, trained))
    return models


def _restore_all(
    directories: Sequence[str | os.PathLike[str]], weights: str | None
) -> list[tuple[str, TrainedModel]]:
    """Load the trained models in some directories, each with the name of its directory."""
    paths = [cloud_storage.localize(directory) for directory in directories]
    saved = [saved_model(path, weights) for path in paths]
    first = saved[0]
    for each in saved:
        if (each.model, each.weights) != (first.model, first.weights):
            raise errors.UserError(
                f'{first.path} and {each.path} have different base models: {_base_name(first)} '
                f'and {_base_name(each)}.'
            )
    base = load_base(first.model, first.weights)
    return [
        (path.resolve().name, each.restore(base)) for path, each in zip(paths, saved, strict=True)
    ]


def _language_model(name: str, trained: TrainedModel) -> LanguageModel:
    return LanguageModel(
        name, trained.model, trained.variables, trained.base.tokenizer, trained.template
    )


def _base_name(saved: StoredModel) -> str:
    """Describe a base model for a message: name, dtype or quantization, and location."""
    where = f' from {saved.weights}' if saved.weights else ''
    precision = saved.model.quantize or saved.model.dtype
    return f'{saved.model.name} in {precision}{where}'


def _stream_text(engine: Engine, text: TextStream) -> Iterator[str]:
    """Yield the text that the engine generates, without leading white space."""
    has_started = False
    while not engine.is_idle:
        for output in engine.step():
            piece = text.add([token.id for token in output.tokens])
            if text.is_over and output.finish_reason is None:
                engine.cancel(output.request_id)
            elif output.finish_reason:
                piece += text.flush()
            if not has_started:
                piece = piece.lstrip()
            if piece:
                has_started = True
                yield piece


def _check_conversation(messages: Sequence[Mapping[str, str]]) -> None:
    for i, message in enumerate(messages, start=1):
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(key), str) for key in ('role', 'content')):
            raise errors.UserError(f'Message {i} must have a role and a content, both texts.')
    if not messages or messages[-1]['role'] != 'user':
        raise errors.UserError("A conversation must end with a message of role 'user'.")
