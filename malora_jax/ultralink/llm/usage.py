"""Numbers of tokens, and counts of the requests, errors, tokens and costs of a run."""

import collections
import dataclasses
from collections.abc import Mapping

from malora_jax.ultralink.llm.prices import Prices


@dataclasses.dataclass(frozen=True)
class TokenUsage:
    """Numbers of tokens that an endpoint reports.

    Attributes:
        prompt: Number of tokens of the messages, including the cached ones.
        completion: Number of tokens of the replies, including those of their reasoning.
        cached: Number of tokens of the messages that the provider found in its prompt cache.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        """Number of all tokens."""
        return self.prompt + self.completion

    def __add__(self, other: 'TokenUsage') -> 'TokenUsage':
        """Return the sum of both numbers."""
        return TokenUsage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
        )

    def __mul__(self, times: int) -> 'TokenUsage':
        """Return the numbers of several requests with this usage."""
        return TokenUsage(times * self.prompt, times * self.completion, times * self.cached)

    def cost(self, model: str, prices: Prices) -> float | None:
        """Return the cost in US dollars, or None if the model's prices are unknown."""
        return prices.cost(model, self.prompt, self.completion, self.cached)

    def describe(self, model: str, prices: Prices) -> str:
        """Return the numbers of tokens and the cost as text."""
        cost = self.cost(model, prices)
        cached = f' ({self.cached:,} of them cached by the provider)' if self.cached else ''
        parts = [
            f'{self.prompt:,} prompt tokens{cached}',
            f'{self.completion:,} completion tokens',
            *([] if cost is None else [f'${cost:,.4f}']),
        ]
        return ', '.join(parts)


class UsageMeter:
    """Counts of the requests that one run sends to a model.

    Attributes:
        model: Name of the model in the table of prices.
        requests: Number of requests sent, including repeated ones.
        errors: Number of requests that failed, by kind.
        usage: Numbers of tokens of all replies.
    """

    def __init__(self, model: str, prices: Prices):
        """Create a meter without counts.

        Args:
            model: Name of the model in the table of prices.
            prices: Prices of tokens.
        """
        self.model = model
        self.requests = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.usage = TokenUsage()
        self._prices = prices

    def cost(self, usage: TokenUsage) -> float | None:
        """Return the cost of tokens of the model, or None if its prices are unknown."""
        return usage.cost(self.model, self._prices)

    @property
    def facts(self) -> list[str]:
        """Short texts for the progress: tokens, errors and cost so far."""
        errors, cost = self.errors.total(), self.cost(self.usage)
        facts = [f'{self.usage.total:,} tokens'] if self.requests else []
        facts += [f'{errors:,} error{"s" if errors > 1 else ""}'] if errors else []
        return facts if cost is None or not facts else [*facts, f'${cost:,.2f}']

    def report(self, total: Mapping[str, TokenUsage]) -> str:
        """Return the counts of this run, and the tokens and costs of all runs, as lines of text.

        Args:
            total: Numbers of tokens of all replies in the cache, by model.
        """
        kinds = ', '.join(f'{number:,} {kind}' for kind, number in sorted(self.errors.items()))
        failed = f' ({self.errors.total():,} failed: {kinds})' if self.errors else ''
        used = self.usage.describe(self.model, self._prices)
        lines = [f'{self.model}, this run: {self.requests:,} requests{failed}, {used}']
        for model, usage in total.items():
            name = model or 'Replies of an earlier version'
            lines.append(f'{name}, all runs in the cache: {usage.describe(model, self._prices)}')
        return '\n'.join(lines)
