"""Loading finished runs from directories, made up here in the form that training leaves."""

import json
import pathlib
import re

import pytest

from configs import intra_domain_small
from malora_jax.errors import UserError
from malora_jax.runs import LoadedRun, check_comparable, read_runs, seed_groups
from tests.helpers.finished_runs import write_finished_run


def write_run(directory: pathlib.Path, method: str = 'lora', **changes) -> None:
    """Write a finished run; a change is the value of a config field, named SECTION__FIELD."""
    config = intra_domain_small.get_config(method)
    for name in [name for name in changes if '__' in name]:
        section, field = name.split('__')
        config[section][field] = changes.pop(name)
    write_finished_run(directory, config, 20, **changes)


def test_a_directory_of_runs_counts_as_its_finished_runs(tmp_path):
    for name in ('b', 'a'):
        write_run(tmp_path / 'runs' / name)
    (tmp_path / 'runs' / 'unfinished').mkdir()
    write_run(tmp_path / 'c')
    runs = read_runs([tmp_path / 'runs', tmp_path / 'c'])
    assert [run.name for run in runs] == ['a', 'b', 'c']
    assert [run.file_name for run in runs] == ['a', 'b', 'c']


def test_files_are_read_when_they_are_asked_for(tmp_path):
    write_run(tmp_path / 'lora')
    for name in ('metrics.jsonl', 'answers_before.jsonl', 'config.json'):
        (tmp_path / 'lora' / name).unlink()
    run = LoadedRun(tmp_path / 'lora')
    assert run.results['steps'] == 3 and len(run.answers_after) == 200
    with pytest.raises(UserError, match=r'lora is not a complete run: \S+metrics\.jsonl is miss'):
        assert run.records


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        read_runs([tmp_path])
    assert str(caught.value) == (
        f'{tmp_path} holds no run: there is no {tmp_path}/config.json, and no directory in it has '
        'results.json.'
    )


def test_what_is_no_whole_run_is_refused(tmp_path):
    write_run(tmp_path / 'lora')
    (tmp_path / 'lora' / 'results.json').write_text('{"tasks": {}}')
    with pytest.raises(
        UserError, match=r'/results\.json: average is missing: restore it from a copy'
    ):
        read_runs([tmp_path])
    (tmp_path / 'lora' / 'config.json').unlink()
    with pytest.raises(UserError, match=r'lora is not a complete run: \S+/config\.json is missing'):
        read_runs([tmp_path])


def test_runs_of_other_bases_are_refused(tmp_path):
    write_run(tmp_path / 'lora')
    write_run(tmp_path / 'malora', model__name='smollm2-360m')
    with pytest.raises(UserError, match=r'different base models, smollm2-135m \(None\) and smol'):
        read_runs([tmp_path])


def test_published_runs_need_no_texts(tmp_path):
    write_run(tmp_path / 'lora')
    for when in ('before', 'after'):
        path = tmp_path / 'lora' / f'answers_{when}.jsonl'
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            del row['expected'], row['answer']
        path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    (run,) = read_runs([tmp_path])
    assert sum(answer['score'] for answer in run.answers_after) == 100


@pytest.mark.parametrize(
    ('other', 'what'),
    [
        ({'question_format': 'How {}?'}, 'held-out questions of piqa'),
        ({'model__weights': 'other.gguf'}, 'model'),
        ({'data__template': 'chatml'}, 'template'),
        ({'scoring': 'letter'}, 'scoring of piqa'),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, other, what):
    write_run(tmp_path / 'lora', loss=2.0)
    write_run(tmp_path / 'malora', 'malora', loss=1.5, **other)
    runs = read_runs([tmp_path])
    message = (
        f'The runs {tmp_path}/lora and {tmp_path}/malora differ in their {what}: they cannot be '
        'compared.'
    )
    with pytest.raises(UserError, match=re.escape(message)):
        check_comparable(runs)
    # Without a table of the paper, the rows are only listed next to each other, without
    # differences.
    _, lora, malora = seed_groups(runs)
    assert malora.average_difference(lora) is None and malora.task_differences(lora) == {}


def test_how_programs_are_confined_makes_no_difference(tmp_path):
    for name, network in (('lora', True), ('malora', False)):
        write_run(tmp_path / name)
        path = tmp_path / name / 'results.json'
        results = json.loads(path.read_text())
        for task in results['tasks'].values():
            task['scoring']['sandbox'] = {'network': network}
        path.write_text(json.dumps(results))
    check_comparable(read_runs([tmp_path]))


def test_runs_of_other_tasks_can_be_read_together(tmp_path):
    """The tasks that they share are compared."""
    write_run(tmp_path / 'lora')
    write_run(tmp_path / 'lora-boolq', 'lora,task=boolq')
    runs = read_runs([tmp_path])
    check_comparable(runs)
    _, lora, single = seed_groups(runs)
    assert (single.name, {*single.task_differences(lora)}) == ('lora_single', {'boolq'})


def test_rows_without_a_table(tmp_path):
    """Seeds share a row if nothing else differs; other runs have their own rows."""
    for seed in (0, 1):
        write_run(tmp_path / f'lora-seed{seed}', seed=seed)
        rate = 0.001 + 0.001 * seed
        write_run(
            tmp_path / f'malora-seed{seed}', 'malora', seed=seed, optimizer__learning_rate=rate
        )
    groups = seed_groups(read_runs([tmp_path]))
    assert [group.name for group in groups] == ['base', 'lora', 'malora-seed0', 'malora-seed1']
    assert groups[1].by_seed('score') == {0: 0.5, 1: 0.5}
