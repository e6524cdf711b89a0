"""Answers to many prompts at once, as tokens or as texts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from malora_jax.distributed import hosts
from malora_jax.models.decoder import Decoder
from malora_jax.models.engine import Engine, Request
from malora_jax.models.sampling import check_sampling, keys_of
from malora_jax.models.texts import Ending, TextDecoder


class Generator:
    """Answers prompts with a model.

    Attributes:
        model: the decoder.
        end_id: the token after which an answer is over; it is not part of the answer.
        batch_size: answers that are written side by side.
        max_new_tokens: the most new tokens.
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
        limit: int | None = None,
        *,
        description: str | None = None,
    ) -> list[list[int]]:
        """The most probable continuation of each prompt.

        Args:
            variables: the model's collections.
            prompts: token ids; none is empty.
            limit: new tokens at most, if fewer than `max_new_tokens`.
            description: what the progress bar says; None = there is none.

        Returns:
            Token ids of each answer, in the order of the prompts.

        Raises:
            UserError: a prompt and its answer might not fit into the model's context.
        """
        most = self._most(limit)
        requests = [Request(prompt, most) for prompt in prompts]
        found = dict(self.finished(variables, requests, None, description))
        return [found[i] for i in range(len(requests))]

    def texts(
        self,
        variables: Any,
        prompts: Sequence[Sequence[int]],
        tokenizer: TextDecoder,
        *,
        limit: int | None = None,
        stop: Sequence[str] = (),
        samples: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        description: str | None = None,
    ) -> list[list[str]]:
        """Texts that continue each prompt.

        What is drawn depends on the seed, the number of the prompt, that of the sample and the
        place in the text; not on what else is written beside it, nor on how many samples there are.

        Args:
            variables: the model's collections.
            prompts: token ids; none is empty.
            tokenizer: of the model.
            limit: new tokens at most, if fewer than `max_new_tokens`.
            stop: a text ends before the first of these. One that is a special token ends it too.
            samples: texts for each prompt.
            temperature: what logits are divided by before a token is drawn; 0 = each token is the
                most probable one.
            top_k: see `Draws`.
            top_p: see there.
            seed: of what is drawn.
            description: what the progress bar says; None = there is none.

        Returns:
            The texts of each prompt, in the order of the prompts.

        Raises:
            UserError: as for `__call__`, or a value out of range.
        """
        check_sampling(samples, temperature, top_k, top_p)
        ending = Ending(tokenizer, tuple(stop))
        count = len(prompts) * samples
        keys = keys_of(seed, len(prompts), samples) if temperature > 0 else [None] * count
        requests = [
            Request(prompts[i // samples], self._most(limit), temperature, top_k, top_p, keys[i])
            for i in range(count)
        ]
        over = ending.is_met if stop else None
        answers = dict(self.finished(variables, requests, over, description))
        texts = [ending.text(answers[i]) for i in range(count)]
        return [texts[i : i + samples] for i in range(0, count, samples)]

    def finished(
        self,
        variables: Any,
        requests: Sequence[Request],
        over: Callable[[list[int]], bool] | None = None,
        description: str | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """Answers in the order in which they end, each with the number of its request.

        Args:
            variables: the model's collections.
            requests: what is to be answered.
            over: what says of an answer that it has come to its end, some tokens ago perhaps.
            description: what the progress bar says; None = there is none.

        Raises:
            UserError: as for `__call__`.
        """
        rows = max(1, min(self.batch_size, len(requests)))
        engine = Engine(self.model, variables, [self.end_id], rows)
        # The longest first, so that there is room for the others.
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
        index_of = {engine.submit(requests[i]): i for i in longest_first}
        answers: list[list[int]] = [[] for _ in requests]
        with tqdm.tqdm(
            total=len(requests),
            desc=description,
            unit='answer',
            dynamic_ncols=True,
            disable=description is None or not hosts.is_first(),
        ) as bar:
            while not engine.is_idle:
                for news in engine.step():
                    index = index_of[news.number]
                    answers[index] += [token.id for token in news.tokens]
                    if news.finish is None:
                        if over is None or not over(answers[index]):
                            continue
                        engine.cancel(news.number)
                    bar.update()
                    yield index, answers[index]

    def _most(self, limit: int | None) -> int:
        return self.max_new_tokens if limit is None else min(limit, self.max_new_tokens)
