"""The table of stages: flags, help texts and checks are generated from its entries."""

import dataclasses
import re
import shlex

import pytest
from absl import flags

import experiments
from experiments.ultralink.__main__ import _with_underscores
from experiments.ultralink.stage_flags import StageFlags
from malora_jax.errors import UserError
from malora_jax.ultralink.settings import Settings, setting
from malora_jax.ultralink.stage_command import Stage
from malora_jax.ultralink.stages import STAGES


@dataclasses.dataclass(frozen=True)
class SomeConfig(Settings):
    section = 'some'
    low: int = setting('Lower bound.', 3, at_least=1)
    high: int = setting('Upper bound.', 5, at_least='low')
    share: float = setting('Share.', 0.5, above=0, at_most=1)
    kind: str = setting('Kind.', 'a', choices=('a', 'b'))
    name: str = setting('Name.', '', recorded=False)


@pytest.mark.parametrize('name', STAGES)
def test_the_examples_are_command_lines(name):
    stage = STAGES[name]
    assert stage.examples
    for example in stage.examples:
        registry = flags.FlagValues()
        StageFlags(stage, registry)
        # An unknown flag or a missing one would be an error.
        rest = registry([name, *map(_with_underscores, shlex.split(example))])
        assert rest == [name]


@pytest.mark.parametrize('name', STAGES)
def test_the_help_has_purpose_example_and_narrow_lines(name):
    text = STAGES[name].help
    assert text.startswith(f'{STAGES[name].purpose}\n\n')
    assert f'    python -m experiments.ultralink {name} --' in text
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize('name', STAGES)
def test_the_help_of_a_stage_with_many_flags_lists_each_once_by_group(name):
    registry = flags.FlagValues()
    text = StageFlags(STAGES[name], registry).help
    _, _, groups = text.partition('\n\nFlags by group:\n')
    listed = re.findall(r'--(\w+)', groups.partition('\n\n')[0])
    assert sorted(listed) == (sorted(registry) if len(list(registry)) > 6 else [])
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize('name', STAGES)
def test_messages_name_the_stage_of_a_setting(name):
    assert STAGES[name].config.section in (name, '')


def test_the_stages_that_write_rows_are_those_that_resume():
    resumable = {name.split()[1] for name in experiments._RESUMABLE if ' ' in name}
    assert resumable == {name for name, each in STAGES.items() if isinstance(each, Stage)}


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'low': 0}, 'some.low is 0; it must be at least 1.'),
        ({'low': 6}, 'some.high is 5; it must be at least 6 (low).'),
        ({'share': 0.0}, 'some.share is 0.0; it must be above 0 and at most 1.'),
        ({'share': float('nan')}, 'some.share is nan; it must be a finite number.'),
        ({'kind': 'c'}, "some.kind is 'c'; it must be one of a, b."),
        ({'name': 3}, 'some.name is 3; it must be text in quotes.'),
    ],
)
def test_a_value_that_is_not_allowed(changes, message):
    with pytest.raises(UserError) as error:
        SomeConfig(**changes)
    assert str(error.value) == message


def test_flags_show_the_allowed_values():
    texts = [field.metadata['declaration'].flag_help for field in dataclasses.fields(SomeConfig)]
    assert texts == [
        'Lower bound; at least 1.',
        'Upper bound; at least low.',
        'Share; above 0 and at most 1.',
        'Kind; one of a, b.',
        'Name.',
    ]


def test_the_manifest_stores_what_is_recorded():
    assert SomeConfig().recorded_values == {'low': 3, 'high': 5, 'share': 0.5, 'kind': 'a'}
