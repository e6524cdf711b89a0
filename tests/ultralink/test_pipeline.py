"""The groups and the order of commands, and inputs that another command should read."""

import re

import pytest

from experiments.ultralink.__main__ import _listing
from malora_jax.errors import UserError
from malora_jax.ultralink import pipeline, shards
from malora_jax.ultralink.manifest import ShardCounts, StageManifest
from malora_jax.ultralink.stage_command import Stage
from malora_jax.ultralink.stages import STAGES
from tests.ultralink.helpers import write_rows


def test_each_command_is_in_one_group():
    assert sorted(pipeline.NAMES) == sorted(STAGES)
    assert len(pipeline.GROUPS) == 3


def test_the_readers_of_each_stage_are_commands_with_inputs():
    assert set(pipeline.READERS) == {
        name for name, each in STAGES.items() if isinstance(each, Stage)
    }
    for names in pipeline.READERS.values():
        assert all(STAGES[name].inputs for name in names)


def test_the_listing_has_a_sentence_for_each_group_and_command():
    lines = _listing().splitlines()
    headings = [line for line in lines if line and not line.startswith(' ')]
    assert [heading.partition(':')[0] for heading in headings] == [
        'Make data',
        'Release data',
        'Evaluate models',
    ]
    assert all(heading.endswith('.') for heading in headings)
    listed = dict(
        re.fullmatch(r'  (\w+) +(.+\.)', line).groups() for line in lines if line[:1] == ' '
    )
    assert listed == {name: each.purpose for name, each in STAGES.items()}
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    'stage, command, advice',
    [
        ('documents', 'prune', 'run `dialogues` next'),
        ('documents', 'documents', 'run `dialogues` next'),
        ('dialogues', 'translate', 'run `prune`, `export` or `report` next'),
        ('mgsm', 'judge', 'no command reads it'),
        ('documents', 'dialogues', ''),
        ('translate', 'prune', ''),
        ('import', 'criteria', ''),
        # A stage that a later version adds.
        ('another', 'prune', ''),
    ],
)
def test_an_input_is_recognized_by_its_manifest(tmp_path, stage, command, advice):
    with shards.open_writer(tmp_path / 'out', StageManifest(stage, {}, 0, '', 1)) as writer:
        writer.add([{'id': 'a'}], ShardCounts(1, 1))
    own = write_rows(tmp_path / 'own.jsonl', [])
    for path in (tmp_path / 'out', tmp_path / 'out' / 'rows-00000.jsonl'):
        if advice:
            with pytest.raises(UserError) as error:
                pipeline.check_inputs(command, [own, path])
            assert str(error.value) == f'{path} is the output of `{stage}`; {advice}.'
        else:
            pipeline.check_inputs(command, [own, path])
