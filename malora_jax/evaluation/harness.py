"""Adapter to EleutherAI's evaluation harness, lm-evaluation-harness; needs the extra `harness`.

The harness tokenizes a context and its continuation together and then splits the tokens. Training
and the project's own scores tokenize them separately. Both give the same tokens if no token can
span the boundary, for example if the continuation begins with white space.

No other module of this package imports `lm_eval`.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from malora_jax import errors
from malora_jax.data import TokenizerProtocol, with_bos
from malora_jax.data.chat import ChatRenderer
from malora_jax.distributed import hosts
from malora_jax.evaluation.likelihood import log_likelihoods, rolling_log_likelihoods
from malora_jax.models import Decoder
from malora_jax.models.generate import Generator

NAME = 'malora_jax'
BATCH_SIZE = 16  # Batch size if the harness passes 'auto'.
PAD_MULTIPLE = 128  # Divisor of the row length in tokens; several texts are packed into a row.
MAX_NEW_TOKENS = 256  # Default for tasks that set no limit, as in the harness's own models.

# Generation settings that a task may set freely, and settings that are accepted only with the given
# value.
_ALLOWED_SETTINGS = ('until', 'max_gen_toks', 'do_sample', 'temperature', 'top_p')
_FIXED_SETTINGS = {'num_beams': 1}


class LoadedModel(NamedTuple):
    """The model under evaluation.

    Attributes:
        model: Decoder.
        variables: Variable collections of the decoder.
        tokenizer: Tokenizer of the model.
        end_text: Text that ends an answer, in addition to the tokenizer's end-of-text token; None =
            only the token ends an answer.
    """

    model: Decoder
    variables: Any
    tokenizer: TokenizerProtocol
    end_text: str | None = None


class HarnessModel(TemplateLM):
    """A model for `lm_eval.simple_evaluate`.

    Contexts that are too long are truncated on the left, as in the harness's own models. For
    example:

        lm_eval.simple_evaluate(HarnessModel(loaded_model), tasks=['arc_easy'])
    """

    def __init__(
        self,
        loaded_model: LoadedModel,
        *,
        batch_size: int = BATCH_SIZE,
        max_length: int | None = None,
        seed: int = 0,
    ):
        """Wrap a model for the harness.

        Args:
            loaded_model: Model under evaluation.
            batch_size: For generation, the number of prompts that are continued together. For
                log-likelihoods, the number of rows in a batch. Several texts are packed into a row
                of `PAD_MULTIPLE` tokens; `log_likelihoods` describes longer texts.
            max_length: Context length to use, in tokens; None = the model's own context length.
            seed: Random seed of tasks that sample.

        Raises:
            UserError: `max_length` is not from 1 to the model's context length.
        """
        super().__init__()
        config = loaded_model.model.config
        if max_length is not None:
            if not 1 <= max_length <= config.context:
                right = f'from 1 to {config.context}, the context of {config.name}'
                raise errors.out_of_range('max_length', max_length, right)
            config = dataclasses.replace(config, context=max_length)
        self.loaded_model = loaded_model._replace(model=loaded_model.model.clone(config=config))
        self.batch_size = batch_size
        self.seed = seed

    @property
    def max_length(self) -> int:
        """Context length in use, in tokens."""
        return self.loaded_model.model.config.context

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        return self.loaded_model.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that is put in front of a text, to predict its first token: bos or eos.

        It is the eos token only if the tokenizer has no bos token.
        """
        tokenizer = self.loaded_model.tokenizer
        bos = tokenizer.token_to_id(tokenizer.named_tokens.get('bos_token', ''))
        return self.eot_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the token ids of a text, with a leading bos token if the tokenizer adds one.

        Args:
            string: Text to encode.
            add_special_tokens: False = without the bos token.
            **kwargs: Further arguments of the harness, which are ignored.
        """
        ids = self.loaded_model.tokenizer.encode(string)
        return ids if add_special_tokens is False else with_bos(self.loaded_model.tokenizer, ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        with hosts.progress_bar('log-likelihoods', len(requests), 'text') as bar:
            likelihoods = log_likelihoods(
                self.loaded_model.model,
                self.loaded_model.variables,
                [(context, continuation) for _, context, continuation in requests],
                batch_size=self.batch_size,
                pad_multiple=PAD_MULTIPLE,
                advance=bar.advance,
            )
        return [(likelihood.log_probability, likelihood.is_greedy) for likelihood in likelihoods]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each whole text in nats, from which perplexity is computed.

        Args:
            requests: Requests whose only argument is a text.
            disable_tqdm: Ignored.
        """
        texts = [
            self.tok_encode(text, add_special_tokens=False) for (text,) in _arguments(requests)
        ]
        with hosts.progress_bar('log-likelihoods', len(texts), 'text') as bar:
            likelihoods = rolling_log_likelihoods(
                self.loaded_model.model,
                self.loaded_model.variables,
                texts,
                self.prefix_token_id,
                batch_size=self.batch_size,
                pad_multiple=PAD_MULTIPLE,
                advance=bar.advance,
            )
        return [likelihood.log_probability for likelihood in likelihoods]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a generated continuation of each context.

        Args:
            requests: Requests with a context and its generation settings.
            disable_tqdm: Ignored.

        Raises:
            UserError: A setting is unknown, or leaves no room for a context.
        """
        texts = [''] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, (_, settings) in enumerate(_arguments(requests)):
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
        for key, numbers in groups.items():
            contexts = [requests[i].args[0] for i in numbers]
            for i, text in zip(numbers, self._generate(contexts, json.loads(key)), strict=True):
                texts[i] = text
        return texts

    def _generate(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)
        for name, value in settings.items():
            if name not in _ALLOWED_SETTINGS and _FIXED_SETTINGS.get(name) != value:
                raise errors.UserError(
                    f'generation_kwargs has {name} = {value!r}, which is not supported; it may set '
                    f'{", ".join(_ALLOWED_SETTINGS)}.'
                )
        model, variables, tokenizer, end = self.loaded_model
        limit = settings['max_gen_toks']
        room = self.max_length - limit
        if room < 1:
            right = f'below {self.max_length}, the context length in use for {model.config.name}'
            raise errors.out_of_range('generation_kwargs.max_gen_toks', limit, right)
        generator = Generator(
            model,
            self.eot_token_id,
            batch_size=min(self.batch_size, len(contexts)),
            max_new_tokens=limit,
        )
        with hosts.progress_bar('answers', len(contexts), 'answer') as bar:
            texts = generator.generate_texts(
                variables,
                [(self.tok_encode(text) or [self.prefix_token_id])[-room:] for text in contexts],
                tokenizer,
                stop=[text for text in (*settings['until'], end) if text],
                temperature=settings.get('temperature', 0.0),
                top_p=settings.get('top_p', 1.0),
                seed=self.seed,
                advance=bar.advance,
            )
        return [text for (text,) in texts]

    @property
    def tokenizer_name(self) -> str:
        """Name of the model, for the harness's cache of prompts.

        Prompts that contain the model's chat template are cached separately for each name.
        """
        return self.loaded_model.model.config.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the source of the model's own chat template, which the harness records.

        Args:
            chat_template: Choice of the harness among several templates, which is ignored.
        """
        return self.loaded_model.tokenizer.chat_template or ''

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation with the model's own chat template.

        Args:
            chat_history: Messages, each with a `role` and a `content`.
            add_generation_prompt: Whether to end with the start of the model's turn. If False, the
                text ends with the content of the last message, so that the model continues it.

        Raises:
            UserError: The model has no chat template, or one that cannot be used.
        """
        tokenizer = self.loaded_model.tokenizer
        if tokenizer.chat_template is None:
            raise errors.UserError(
                'The model comes without a chat template: leave out --apply_chat_template.'
            )
        chat = ChatRenderer(
            tokenizer.chat_template, tokenizer.named_tokens, tokenizer.special_tokens
        )
        text = chat.render(*chat_history)
        if add_generation_prompt:
            return text
        last = chat_history[-1]['content'].strip()
        return text[: text.rindex(last) + len(last)]


def register(load: Callable[..., tuple[Decoder, Any, TokenizerProtocol, str | None]]) -> None:
    """Register `malora_jax` as a model of the harness's command line.

    Among the harness's --model_args, `max_length` and `seed` go to `HarnessModel`, and the others
    to `load`. The harness's --device is ignored, because JAX chooses the device.

    Args:
        load: Function that returns the fields of a `LoadedModel`. The harness converts an argument
            that looks like a number before it calls the function: '7' becomes the integer 7.
    """
    parameters = inspect.signature(load).parameters

    class Registered(HarnessModel):
        def __init__(
            self,
            batch_size: int | str = 'auto',
            max_length: int | None = None,
            seed: int = 0,
            device: str | None = None,
            max_batch_size: int | None = None,
            **arguments: Any,
        ):
            for name in arguments:
                if name not in parameters:
                    known = (*parameters, 'max_length', 'seed')
                    raise errors.unknown_name('model argument', name, known)
            size, loaded_model = _batch_size(batch_size), LoadedModel(*load(**arguments))
            super().__init__(loaded_model, batch_size=size, max_length=max_length, seed=seed)

    register_model(NAME)(Registered)


def _batch_size(value: int | str) -> int:
    if str(value).startswith('auto'):
        return BATCH_SIZE
    if not str(value).isdigit() or int(value) < 1:
        raise errors.out_of_range('--batch_size', value, "at least 1, or 'auto'")
    return int(value)


def _arguments(requests: Sequence[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]
