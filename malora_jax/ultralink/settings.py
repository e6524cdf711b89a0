"""Settings of stages: the default, help text and allowed range of each field, declared once.

The command line makes a flag of each field. `Settings` checks the values, and returns those that
the manifest of a stage stores.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

from malora_jax import errors
from malora_jax.ultralink.languages import LANGUAGES, get_language


class Declaration(NamedTuple):
    """The metadata of a field.

    Attributes:
        help: Help text of the flag.
        at_least: Smallest allowed value, or the name of the field that has it; None = no bound.
        above: Exclusive lower bound.
        at_most: Largest allowed value.
        choices: Allowed values; empty = any.
        is_language: Whether the value must be the code of a language.
        recorded: Whether the manifest stores the value. Paths are not recorded: rows depend on
            the content of the files.
    """

    help: str
    at_least: float | str | None = None
    above: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    is_language: bool = False
    recorded: bool = True

    @property
    def flag_help(self) -> str:
        """Help text of the flag, with the allowed values."""
        allowed = self.allowed()
        return f'{self.help.removesuffix(".")}; {allowed}.' if allowed else self.help

    def allowed(self, settings: Any = None) -> str:
        """Return the description of the allowed values, such as 'from 0 to 1'; '' = any.

        Args:
            settings: Values of the other fields, for a bound that is the name of a field; None if
                they are not known.
        """
        if self.choices:
            return f'one of {", ".join(self.choices)}'
        least: Any = self.at_least
        if isinstance(least, str) and settings:
            least = f'{getattr(settings, least)} ({least})'
        if least is not None and self.at_most is not None:
            return f'from {least} to {self.at_most}'
        bounds = (('at least', least), ('above', self.above), ('at most', self.at_most))
        return ' and '.join(f'{word} {bound}' for word, bound in bounds if bound is not None)

    def allows(self, value: Any, settings: Any) -> bool:
        """Return whether a value is allowed, given the values of the other fields."""
        least: Any = self.at_least
        if isinstance(least, str):
            least = getattr(settings, least)
        return (
            (not self.choices or value in self.choices)
            # NaN is in no range.
            and (least is None or value >= least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )


def setting(text: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """Declare a field of a dataclass of settings.

    Args:
        text: Help text of the flag.
        default: Default value; without one, the flag is required.
        **bounds: Further attributes of `Declaration`.
    """
    return dataclasses.field(default=default, metadata={'declaration': Declaration(text, **bounds)})


def language_setting(choices: Iterable[str] = LANGUAGES) -> Any:
    """Declare a field for the code of a language, by default of any of the five."""
    return setting('Code of the language.', is_language=True, choices=tuple(choices))


def attempts_setting(default: int) -> Any:
    """Declare a field for the number of attempts."""
    text = 'Number of times that the model is asked for the same text until the answer is usable.'
    return setting(text, default, at_least=1)


def temperature_setting(default: float) -> Any:
    """Declare a field for the sampling temperature."""
    return setting('Sampling temperature; 0 = greedy decoding.', default, at_least=0)


def top_p_setting(default: float) -> Any:
    """Declare a field for nucleus sampling."""
    text = (
        'Nucleus sampling: sample from the smallest set of tokens whose probabilities sum to at '
        'least this.'
    )
    return setting(text, default, above=0, at_most=1)


def declarations(settings: Any) -> dict[str, Declaration]:
    """Return the declarations of a dataclass's fields, or of an instance's, by name."""
    return {field.name: field.metadata['declaration'] for field in dataclasses.fields(settings)}


def check_ranges(settings: Any, section: str = '') -> None:
    """Check the values of a dataclass against the declarations of its fields.

    Args:
        settings: Instance of the dataclass.
        section: Prefix of the fields' names in messages.

    Raises:
        UserError: A value is not allowed.
    """
    for name, declaration in declarations(settings).items():
        value = getattr(settings, name)
        if declaration.is_language:
            get_language(value)
        if not declaration.allows(value, settings):
            field = f'{section}.{name}' if section else name
            raise errors.out_of_range(field, value, declaration.allowed(settings))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the dataclasses of settings; itself the settings of a stage that has none.

    Attributes:
        section: Name of the stage, which prefixes the fields' names in messages.
    """

    section = ''

    def __post_init__(self):
        errors.check_types(self.section, self)
        check_ranges(self, self.section)

    @property
    def recorded(self) -> dict[str, Any]:
        """Values that the manifest stores, by name."""
        found = declarations(self).items()
        return {name: getattr(self, name) for name, each in found if each.recorded}
