"""The identity of a run: the config, data and base model that its checkpoints belong to.

The identity is stored inside each checkpoint. A run therefore never resumes from a checkpoint that
was trained with another config, other data or another base model, even if the files next to the
checkpoint were edited or lost.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from malora_jax.errors import UserError
from malora_jax.training.config import field_defaults

# Fields that may change when a run resumes; all others belong to its identity. A name that ends
# with a dot covers all fields of its section. `evaluation.tasks` must not change, because it
# decides which questions are removed from the training data.
LENGTH_FIELDS = (
    'training.steps',
    'training.epochs',
    'training.evaluate_every',
    'training.patience',
)
SCORING_FIELDS = ('evaluation.max_new_tokens', 'evaluation.samples', 'evaluation.temperature')
# These fields do not change the results, apart from rounding. `model.weights` may change, because a
# base model that was moved is recognized by its fingerprint.
NEUTRAL_FIELDS = (
    *('training.checkpoint_every', 'training.keep_checkpoints', 'training.remat'),
    *('evaluation.batch_size', 'data.workers', 'mesh.', 'model.weights', 'model.attention'),
)
MUTABLE_FIELDS = (*LENGTH_FIELDS, *SCORING_FIELDS, *NEUTRAL_FIELDS)


class FieldChange(NamedTuple):
    """A config field that has changed since a run was saved.

    Attributes:
        field: Dotted name of the field.
        old: JSON value with which the run was saved.
        new: JSON value in the current config.
    """

    field: str
    old: Any
    new: Any

    def is_one_of(self, names: tuple[str, ...]) -> bool:
        """Return whether the names include the field or its section.

        Args:
            names: Dotted names of fields and of sections. The name of a section ends with a dot,
                such as 'mesh.', and includes all fields of the section.
        """
        return any(
            self.field == name or (name.endswith('.') and self.field.startswith(name))
            for name in names
        )

    def __str__(self) -> str:
        return f'{self.field} {json.dumps(self.old)} → {json.dumps(self.new)}'


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """The config, data and base model of a run; an unknown part is None.

    Attributes:
        config: JSON values of the config, by dotted name.
        data: SHA-256 digests, by name of the data file or public dataset. A data file has one
            digest. A public dataset has a dict, from the name of each split to the digests of the
            split's files.
        base: Fingerprint of the base model's weights.
    """

    config: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    base: str | None

    def check(self, saved: 'RunIdentity', name: str) -> list[FieldChange]:
        """Check that a saved checkpoint or run directory belongs to this run.

        Args:
            saved: Identity that is stored in the checkpoint or directory.
            name: Name of the checkpoint or directory, for error messages.

        Returns:
            The fields that differ. They are all fields that are allowed to change when a run
            resumes.

        Raises:
            UserError: The saved checkpoint or directory has other data, another base model, or
                another value of a config field that must not change.
        """
        changes = self._check_config(saved, name)
        self._check_data(saved, name)
        if None not in (self.base, saved.base) and self.base != saved.base:
            raise UserError(
                f'{name} was trained on another base model: its fingerprint is {saved.base}, and '
                f'that of these weights is {self.base}; set model.weights to the base of the run, '
                'or choose another --workdir.'
            )
        return changes

    def _check_config(self, saved: 'RunIdentity', name: str) -> list[FieldChange]:
        if self.config is None or saved.config is None:
            return []
        changes = changed_fields(saved.config, self.config)
        for change in changes:
            if not change.is_one_of(MUTABLE_FIELDS):
                raise another_run_error(name, change.field)
        missing = [field for field in saved.config if field not in self.config]
        if missing:
            raise UserError(
                f'{name} holds a run with fields that this config lacks ({", ".join(missing)}): '
                'choose another --workdir.'
            )
        return changes

    def _check_data(self, saved: 'RunIdentity', name: str) -> None:
        if not self.data or saved.config is None:
            return
        if saved.data is None:
            raise UserError(
                f'data.json is missing from {_within(name)}, so changes of the data cannot be '
                'detected: restore it, or choose another --workdir.'
            )
        for file, digest in self.data.items():
            if saved.data.get(file) != digest:
                raise UserError(
                    f'{file} has changed since the run in {_within(name)} was started: restore it, '
                    'or choose another --workdir.'
                )


def _within(name: str) -> str:
    """Return the name of a directory or checkpoint as it stands within a sentence."""
    return name[:1].lower() + name[1:]


def another_run_error(name: object, field: str) -> UserError:
    """Return the error for a directory or checkpoint whose run has another value of a field.

    Args:
        name: Directory or checkpoint that holds the other run.
        field: Dotted name of the field that differs.
    """
    return UserError(
        f'{name} holds a run with another {field}: resume that one with its own config, or '
        'choose another --workdir.'
    )


def flatten_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a nested config by dotted name, converted as JSON stores them."""
    return dict(_leaves(json.loads(json.dumps(config))))


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """Return the fields of a new config that have another value in an old config.

    A field that the old config lacks counts with its default value, because an older version of
    this package may have written that config.

    Args:
        old: Values of the old config by dotted name.
        new: Values of the new config by dotted name.
    """
    known = field_defaults()
    changes = (FieldChange(field, old.get(field, known.get(field)), new[field]) for field in new)
    return [change for change in changes if change.old != change.new]


def _leaves(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value
