"""Settings of stages: the default, help text and allowed range of each field, declared once.

The command line defines a flag for each field. `Settings` validates the values, and returns those
that the manifest of a stage records.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from malora_jax import errors
from malora_jax.ultralink.languages import LANGUAGES, get_language


class Declaration(NamedTuple):
    """Metadata of a settings field.

    Attributes:
        help: Help text of the flag.
        at_least: Smallest allowed value, or the name of the field that holds it; None = no bound.
        above: Exclusive lower bound; None = no bound.
        at_most: Largest allowed value; None = no bound.
        choices: Allowed values; empty = any.
        languages: Function that returns the allowed language codes; None = the value is no language
            code. The flag may also name the file of a language.
        recorded: Whether the manifest records the value. Paths are not recorded: rows depend on the
            content of the files, not on their paths.
    """

    help: str
    at_least: float | str | None = None
    above: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    languages: Callable[[], Sequence[str]] | None = None
    recorded: bool = True

    @property
    def flag_help(self) -> str:
        """Help text of the flag, with the allowed values."""
        allowed = self.allowed()
        return f'{self.help.removesuffix(".")}; {allowed}.' if allowed else self.help

    def allowed(self, settings: Any = None) -> str:
        """Return a description of the allowed values, such as 'from 0 to 1'; '' = any value.

        Args:
            settings: Values of the other fields, for a bound that is the name of a field; None if
                they are unknown.
        """
        if self.languages:
            codes = ', '.join(filter(None, self.languages()))
            return f'one of {codes}, or the path of the TOML file of another language'
        if self.choices:
            return f'one of {", ".join(self.choices)}'
        minimum: Any = self.at_least
        if isinstance(minimum, str) and settings:
            minimum = f'{getattr(settings, minimum)} ({minimum})'
        if minimum is not None and self.at_most is not None:
            return f'from {minimum} to {self.at_most}'
        bounds = (('at least', minimum), ('above', self.above), ('at most', self.at_most))
        return ' and '.join(f'{word} {bound}' for word, bound in bounds if bound is not None)

    def allows(self, value: Any, settings: Any) -> bool:
        """Return whether a value is allowed, given the values of the other fields."""
        minimum: Any = self.at_least
        if isinstance(minimum, str):
            minimum = getattr(settings, minimum)
        return (
            (not self.choices or value in self.choices)
            and (self.languages is None or value in self.languages())
            # NaN compares false, so any bound rejects it.
            and (minimum is None or value >= minimum)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )


def setting(text: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """Declare a field of a settings dataclass.

    Example:
        size: int = setting('Number of rows.', 10, at_least=1)

    Args:
        text: Help text of the flag.
        default: Default value; without one, the flag is required.
        **bounds: Further attributes of `Declaration`.
    """
    return dataclasses.field(default=default, metadata={'declaration': Declaration(text, **bounds)})


def language_setting(
    text: str,
    languages: Callable[[], Sequence[str]] = lambda: tuple(LANGUAGES),
    default: Any = dataclasses.MISSING,
) -> Any:
    """Declare a field for a language code.

    Args:
        text: Help text of the flag.
        languages: Function that returns the allowed codes, which may include '' for no language.
        default: Default value; without one, the flag is required.
    """
    return setting(text, default, languages=languages)


def attempts_setting(default: int) -> Any:
    """Declare a field for the maximum number of attempts to get a usable reply."""
    text = (
        'Maximum number of attempts to get a usable reply from the model; an unusable reply is '
        'requested again.'
    )
    return setting(text, default, at_least=1)


def temperature_setting(default: float) -> Any:
    """Declare a field for the sampling temperature."""
    return setting('Sampling temperature; 0 = greedy decoding.', default, at_least=0)


def top_p_setting(default: float) -> Any:
    """Declare a field for the threshold of nucleus sampling (top-p)."""
    text = (
        'Nucleus sampling: sample from the smallest set of tokens whose probabilities sum to at '
        'least this.'
    )
    return setting(text, default, above=0, at_most=1)


def declarations(settings: Any) -> dict[str, Declaration]:
    """Return the `Declaration` of each field, by field name.

    Args:
        settings: Settings dataclass, or an instance of one.
    """
    return {field.name: field.metadata['declaration'] for field in dataclasses.fields(settings)}


def check_ranges(settings: Any, section: str = '') -> None:
    """Validate the values of a dataclass against the declarations of its fields.

    Args:
        settings: Instance of the dataclass.
        section: Prefix of field names in messages.

    Raises:
        UserError: A value is not allowed.
    """
    for name, declaration in declarations(settings).items():
        value = getattr(settings, name)
        if declaration.languages and value:
            get_language(value)
        if not declaration.allows(value, settings):
            field = f'{section}.{name}' if section else name
            raise errors.out_of_range(field, value, declaration.allowed(settings))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base class of settings dataclasses. A command without settings uses it directly.

    Attributes:
        section: Name of the stage, which prefixes field names in messages.
    """

    section = ''

    def __post_init__(self):
        errors.check_types(self.section, self)
        check_ranges(self, self.section)

    @property
    def recorded_values(self) -> dict[str, Any]:
        """Values that the manifest records, by field name."""
        declared = declarations(self).items()
        return {name: getattr(self, name) for name, each in declared if each.recorded}
