"""Prices of tokens by model, from a TOML file of the user.

A file has one table per model, with prices in US dollars per million tokens:

    ["gpt-4o-mini"]
    prompt = 0.15
    completion = 0.60
    cached_prompt = 0.075  # Tokens that the provider finds in its prompt cache; default: `prompt`.

No price is known without a file, because providers change their prices, and discount batches.
"""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping

from malora_jax import files
from malora_jax.errors import UserError, out_of_range

_MILLION = 1_000_000


@dataclasses.dataclass(frozen=True)
class TokenPrices:
    """Prices of a model's tokens, in US dollars per million tokens.

    Attributes:
        prompt: Price of the tokens of a request.
        completion: Price of the tokens of a reply, including those of its reasoning.
        cached_prompt: Price of the tokens of a request that the provider finds in its cache; None
            = the same as `prompt`.
    """

    prompt: float
    completion: float
    cached_prompt: float | None = None


class Prices:
    """Prices of the tokens of several models."""

    def __init__(self, by_model: Mapping[str, TokenPrices] | None = None):
        """Create a table of prices.

        Args:
            by_model: Prices by the name of the model, as it is sent in requests.
        """
        self._by_model = dict(by_model or {})

    def __contains__(self, model: str) -> bool:
        """Return whether the prices of a model are known."""
        return model in self._by_model

    @property
    def models(self) -> list[str]:
        """Names of the models whose prices are known."""
        return list(self._by_model)

    def cost(
        self, model: str, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0
    ) -> float | None:
        """Return the cost of tokens in US dollars, or None if the model's prices are unknown.

        Args:
            model: Name of the model.
            prompt_tokens: Number of tokens of requests, including the cached ones.
            completion_tokens: Number of tokens of replies.
            cached_tokens: Number of tokens of requests that the provider found in its cache.
        """
        prices = self._by_model.get(model)
        if prices is None:
            return None
        cached_price = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
        prompt_cost = (prompt_tokens - cached_tokens) * prices.prompt + cached_tokens * cached_price
        return (prompt_cost + completion_tokens * prices.completion) / _MILLION


def load_prices(path: pathlib.Path | None) -> Prices:
    """Read the table of prices in a TOML file; None = an empty table.

    Raises:
        UserError: The file is missing, is not valid TOML, or a price is missing or not valid.
    """
    if path is None:
        return Prices()
    if not path.is_file():
        raise UserError(f'--prices={path}: there is no such file.')
    try:
        content = tomllib.loads(path.read_text('utf-8'))
    except ValueError as error:  # Not UTF-8, or not TOML.
        raise UserError(f'--prices={path} is not a valid TOML file: {error}.') from error
    for model, fields in content.items():
        if not isinstance(fields, dict):
            raise UserError(
                f'{path}: {model} is {fields!r}; it must be a TOML table, such as '
                f'{model} = {{prompt = 0.15, completion = 0.60}}.'
            )
    files.check_content(dict[str, TokenPrices], content, str(path))
    prices = {model: TokenPrices(**fields) for model, fields in content.items()}
    for model, model_prices in prices.items():
        for name, price in dataclasses.asdict(model_prices).items():
            if price is not None and price < 0:
                raise out_of_range(f'{path}: {model}.{name}', price, 'at least 0')
    return Prices(prices)
