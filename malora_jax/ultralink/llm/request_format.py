"""Formats of requests: presets for kinds of servers, and changes that the user chooses."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from malora_jax import errors, files
from malora_jax.ultralink import settings

# Parameters of a request that a server may name otherwise, or may not accept.
PARAMETERS = ('max_tokens', 'temperature', 'top_p', 'seed')


@dataclasses.dataclass(frozen=True)
class RequestFormat:
    """Changes to the standard body of a request.

    Attributes:
        parameter_names: The server's name of a parameter; None = the parameter is omitted.
        extra_body: Further fields of the body.
    """

    parameter_names: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __or__(self, other: 'RequestFormat') -> 'RequestFormat':
        """Return both changes; the other format wins."""
        return RequestFormat(
            {**self.parameter_names, **other.parameter_names},
            {**self.extra_body, **other.extra_body},
        )

    def body(self, standard: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changed body of a request.

        Args:
            standard: Body with the standard parameters.
        """
        names = {name: self.parameter_names.get(name, name) for name in standard}
        kept = {new: standard[old] for old, new in names.items() if new is not None}
        return {**kept, **self.extra_body}

    def identify(self, model: str) -> str:
        """Return the name of a model together with all changes, since they change its replies."""
        changes = {**self.parameter_names, **self.extra_body}
        return f'{model} {json.dumps(changes, sort_keys=True)}' if changes else model


# vLLM's page "Reasoning Outputs" (0.26) names enable_thinking, and clients that are generated from
# Mistral's specification name random_seed. OpenAI's own pages could not be opened; that its
# reasoning models reject these parameters is from reports of users. Gateways pass requests on to
# servers of which not all accept a seed.
PRESETS = {
    'openai': RequestFormat(),
    'openai_reasoning': RequestFormat(
        {'max_tokens': 'max_completion_tokens', 'temperature': None, 'top_p': None, 'seed': None}
    ),
    'no_thinking': RequestFormat(
        extra_body={'chat_template_kwargs': {'enable_thinking': False}},
    ),
    'mistral': RequestFormat({'seed': 'random_seed'}),
    'gateway': RequestFormat({'seed': None}),
}


@dataclasses.dataclass(frozen=True)
class EndpointSettings(settings.Settings):
    """Format of requests, limits and prices of an endpoint; each field is a flag."""

    section = 'endpoint'
    preset: str = settings.setting(
        'Format of requests: openai for most servers; openai_reasoning for the reasoning models of '
        'OpenAI; no_thinking for vLLM and SGLang, to turn off the <think> sections of a model; '
        'mistral for servers that call the seed random_seed; gateway for servers that do not '
        'accept a seed.',
        'openai',
        choices=tuple(PRESETS),
    )
    parameter_names: str = settings.setting(
        'Names of the parameters max_tokens, temperature, top_p and seed in requests, as a JSON '
        'object; null omits a parameter: '
        '\'{"max_tokens": "max_completion_tokens", "seed": null}\'.',
        '',
    )
    extra_body: str = settings.setting(
        'Further fields of each request, as a JSON object: '
        '\'{"chat_template_kwargs": {"enable_thinking": false}}\'.',
        '',
    )
    extra_headers: str = settings.setting(
        'Further HTTP headers of each request, as a JSON object: \'{"X-Project": "ultralink"}\'.',
        '',
    )
    api_key_variable: str = settings.setting(
        'Name of the environment variable with the API key of the endpoint.', 'OPENAI_API_KEY'
    )
    requests_per_minute: int = settings.setting(
        'Maximum number of model requests in any minute, including repeated ones; 0 = no limit.',
        0,
        at_least=0,
    )
    tokens_per_minute: int = settings.setting(
        'Maximum number of tokens in any minute, summed over the model requests that begin in it '
        'and their replies; 0 = no limit.',
        0,
        at_least=0,
    )
    prices: pathlib.Path | None = settings.setting(
        'TOML file with the prices of the model in US dollars per million tokens; without it, no '
        'cost is reported.',
        None,
    )
    price_limit: float = settings.setting(
        'Maximum cost of all model requests in US dollars, including those in the cache; the stage '
        'stops before it exceeds this cost; needs --prices; 0 = no limit.',
        0.0,
        at_least=0,
    )
    batch: bool = settings.setting(
        'Whether to send the model requests through the batch API of the endpoint, which takes up '
        'to 24 hours per round of requests and usually costs half as much; the limits per minute '
        'do not apply to it.',
        False,
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = next(iter(self._parameter_names.keys() - set(PARAMETERS)), None)
        if unknown is not None:
            raise errors.unknown_name('parameter in --parameter_names', unknown, PARAMETERS)
        _parse(self.extra_body, 'extra_body', dict[str, Any])
        _ = self.headers
        if self.price_limit and self.prices is None:
            raise errors.UserError(
                '--price_limit needs --prices: without prices, no cost is known.'
            )

    @property
    def changed(self) -> dict[str, Any]:
        """Values that are not the default, by field name."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in values if value != field.default}

    @property
    def request_format(self) -> RequestFormat:
        """Format of requests: the preset with the changes."""
        changes = RequestFormat(
            self._parameter_names, _parse(self.extra_body, 'extra_body', dict[str, Any])
        )
        return PRESETS[self.preset] | changes

    @property
    def headers(self) -> dict[str, str]:
        """Further HTTP headers of each request."""
        return _parse(self.extra_headers, 'extra_headers', dict[str, str])

    @property
    def _parameter_names(self) -> dict[str, str | None]:
        return _parse(self.parameter_names, 'parameter_names', dict[str, str | None])


def _parse(text: str, flag: str, hint: Any) -> dict[str, Any]:
    """Parse the JSON object that a flag gives; '' = an empty object.

    Raises:
        UserError: The text is not a JSON object of the expected type.
    """
    if not text:
        return {}
    value = files.parse_json(text, f'--{flag}')
    files.check_content(hint, value, f'--{flag}')
    return value
