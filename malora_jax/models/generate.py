"""Batched generation: answers to a list of prompts, as tokens or as texts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from malora_jax.models.decoder import Decoder
from malora_jax.models.detokenization import Detokenizer, StopCondition
from malora_jax.models.engine import Engine, GenerationRequest
from malora_jax.models.sampling import check_sampling, sampling_keys


class Generator:
    """Batched generation of answers with an `Engine`, which does continuous batching.

    Attributes:
        model: Decoder.
        end_id: Id of the end token, which is not part of an answer.
        batch_size: Number of answers decoded at a time.
        max_new_tokens: Maximum number of new tokens of an answer.
    """

    def __init__(self, model: Decoder, end_id: int, *, batch_size: int, max_new_tokens: int):
        self.model = model
        self.end_id = end_id
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    def __call__(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        *,
        advance: Callable[[int], object] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt by greedy decoding.

        Args:
            variables: Collections of the model.
            prompts: Token ids of each prompt, at least one.
            max_new_tokens: Maximum number of new tokens; None = the generator's `max_new_tokens`,
                to which higher values are reduced.
            advance: Function that shows the progress; see `as_completed`.

        Returns:
            Token ids of each answer, in the order of the prompts.

        Raises:
            UserError: A prompt and the maximum number of new tokens exceed the model's context.
        """
        token_limit = self._token_limit(max_new_tokens)
        requests = [GenerationRequest(prompt, token_limit) for prompt in prompts]
        answers = dict(self.as_completed(variables, requests, None, advance))
        return [answers[i] for i in range(len(requests))]

    def generate_texts(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        tokenizer: Detokenizer,
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        samples: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        advance: Callable[[int], object] | None = None,
    ) -> list[list[str]]:
        """Continue each prompt by sampling or greedy decoding, and return texts.

        The random numbers of a token depend only on the seed, the index of the prompt, the index
        of the sample and the position in the answer. They do not depend on the batch size, on the
        other prompts or on the number of samples.

        Args:
            variables: Collections of the model.
            prompts: Token ids of each prompt, at least one.
            tokenizer: Tokenizer of the model.
            max_new_tokens: Maximum number of new tokens; None = the generator's `max_new_tokens`,
                to which higher values are reduced.
            stop: Stop strings; a text ends before the first one. They may be special tokens.
            samples: Number of texts for each prompt.
            temperature: Divisor of the logits before sampling; 0 for greedy decoding.
            top_k: Number of most probable tokens to sample from; 0 for all.
            top_p: Probability mass of nucleus sampling; 1 for all tokens.
            seed: Random seed for sampling.
            advance: Function that shows the progress; see `as_completed`.

        Returns:
            The texts of each prompt, in the order of the prompts.

        Raises:
            UserError: A setting is out of range, or a prompt and the maximum number of new tokens
                exceed the model's context.
        """
        check_sampling(samples, temperature, top_k, top_p)
        stop_condition = StopCondition(tokenizer, tuple(stop))
        count = len(prompts) * samples
        keys = sampling_keys(seed, len(prompts), samples) if temperature > 0 else [None] * count
        requests = [
            GenerationRequest(
                prompts[i // samples],
                self._token_limit(max_new_tokens),
                temperature,
                top_k,
                top_p,
                keys[i],
            )
            for i in range(count)
        ]
        should_stop = stop_condition.is_met if stop else None
        answers = dict(self.as_completed(variables, requests, should_stop, advance))
        texts = [stop_condition.text(answers[i]) for i in range(count)]
        return [texts[i : i + samples] for i in range(0, count, samples)]

    def as_completed(
        self,
        variables: Any,
        requests: Sequence[GenerationRequest],
        should_stop: Callable[[list[int]], bool] | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield answers as they finish, each with the index of its request.

        Args:
            variables: Collections of the model.
            requests: Prompts with their sampling settings.
            should_stop: Function that receives the tokens of an unfinished answer, and returns
                whether generation of the answer should stop; None never stops early. It is called
                only every few tokens, so an answer may contain a few tokens too many.
            advance: Function that shows the progress. It is called after each step of the engine,
                and with each finished answer; its argument is the number of finished answers, 0 or
                1.

        Yields:
            Index of the request, and token ids of its answer.

        Raises:
            UserError: A prompt and the maximum number of new tokens exceed the model's context.
        """
        num_slots = max(1, min(self.batch_size, len(requests)))
        engine = Engine(self.model, variables, [self.end_id], num_slots)
        # Longest prompt first, so that the KV cache is long enough for all from the start.
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
        index_of = {engine.submit(requests[i]): i for i in longest_first}
        answers: list[list[int]] = [[] for _ in requests]
        advance = advance or (lambda count: None)
        while not engine.is_idle:
            outputs = engine.step()
            advance(0)
            for output in outputs:
                index = index_of[output.request_id]
                answers[index] += [token.id for token in output.tokens]
                if output.finish_reason is None:
                    if should_stop is None or not should_stop(answers[index]):
                        continue
                    engine.cancel(output.request_id)
                advance(1)
                yield index, answers[index]

    def _token_limit(self, limit: int | None) -> int:
        return self.max_new_tokens if limit is None else min(limit, self.max_new_tokens)
