"""A run directory never mixes two runs, even after changes to its files or concurrent starts."""

import shutil

import pytest

from malora_jax import training
from malora_jax.errors import UserError
from malora_jax.files import read_json, read_json_lines, write_json, write_json_lines
from malora_jax.inference import load
from malora_jax.training import training_run
from malora_jax.training.identity import FieldChange
from tests.helpers.runs import STEPS, toy_run_config
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = [pytest.mark.slow(start_first=True), pytest.mark.usefixtures('compile_quickly')]
FILES = ('config.json', 'base.json')


@pytest.fixture
def run(finished_workdir, tmp_path):
    """Copy of a finished run."""
    return shutil.copytree(finished_workdir, tmp_path / 'run')


@pytest.fixture
def interrupted(run):
    """Copy of a run that was killed after its last checkpoint."""
    for name in ('results.json', 'answers_before.jsonl', 'answers_after.jsonl'):
        (run / name).unlink()
    return run


def make_older(workdir):
    """Remove the manifests, which older checkpoints did not have."""
    for folder in (workdir / 'checkpoints').glob('*/manifest'):
        shutil.rmtree(folder)


def edit(path, section, field, value):
    config = read_json(path)
    config[section][field] = value
    write_json(path, config)


# Another run in the same directory.


def test_nothing_gets_in_between_the_check_and_the_lock(tiny_weights, tmp_path, monkeypatch):
    """A process that starts while the base model is loading is refused."""
    build, refused = training_run.build_setup, []

    def slow(run):
        if not refused:
            with pytest.raises(UserError) as caught:
                training.train(toy_run_config(tiny_weights, seed=1), tmp_path / 'run')
            refused.append(str(caught.value))
        return build(run)

    monkeypatch.setattr(training_run, 'build_setup', slow)
    results = training.train(toy_run_config(tiny_weights, training__steps=2), tmp_path / 'run')
    assert refused == [f'Another run is using {tmp_path / "run"}.']
    assert results['seed'] == 0
    assert read_json(tmp_path / 'run' / 'config.json')['seed'] == 0


@pytest.mark.parametrize('older', [False, True])
@pytest.mark.parametrize(
    'change', [{'seed': 1}, {'optimizer__learning_rate': 0.5}, {'adapter__alpha': 3.0}]
)
def test_without_its_config_a_run_does_not_go_on_with_another(
    interrupted, tiny_weights, change, older
):
    (interrupted / 'config.json').unlink()
    if older:
        make_older(interrupted)
    message = 'config.json is missing from a run: restore it' if older else 'a run with another'
    with pytest.raises(UserError, match=message):
        training.train(toy_run_config(tiny_weights, **change), interrupted)
    assert not (interrupted / 'config.json').exists()
    assert not (interrupted / 'results.json').exists()


def test_a_finished_run_does_not_go_on_with_another_without_its_config(run, tiny_weights):
    (run / 'config.json').unlink()
    with pytest.raises(UserError, match='holds a run with another seed'):
        training.train(toy_run_config(tiny_weights, seed=1), run)


def test_what_is_left_of_a_run_is_not_mixed_in(run, tiny_weights):
    """A user may have removed the config and the checkpoints to start again."""
    (run / 'config.json').unlink()
    shutil.rmtree(run / 'checkpoints')
    with pytest.raises(UserError, match=r'config\.json is missing from a run'):
        training.train(toy_run_config(tiny_weights, seed=1), run)


# Missing or edited files.


@pytest.mark.parametrize('name', FILES)
def test_a_file_that_is_missing_is_named_and_written_again(
    interrupted, finished_workdir, tiny_weights, results, name, capsys
):
    (interrupted / name).unlink()
    training.train(toy_run_config(tiny_weights), interrupted)
    assert read_json(interrupted / 'results.json')['tasks'] == results['tasks']
    assert f'{interrupted / name} was missing and is written again.' in capsys.readouterr().out
    assert read_json(interrupted / name) == read_json(finished_workdir / name)


def test_an_edited_config_is_named(interrupted, tiny_weights):
    """The message is the same whether the command gets the edited config or the run's config."""
    edit(interrupted / 'config.json', 'optimizer', 'learning_rate', 0.5)
    for change in ({}, {'optimizer__learning_rate': 0.5}):
        with pytest.raises(UserError) as caught:
            training.train(toy_run_config(tiny_weights, **change), interrupted)
        assert str(caught.value) == (
            f'{interrupted / "config.json"} was edited: it no longer matches the '
            'optimizer.learning_rate in the checkpoints next to it; restore it, or remove it and '
            'start the command with the config of the run.'
        )
    # Following the message's advice with either config mixes nothing.
    (interrupted / 'config.json').unlink()
    with pytest.raises(UserError, match=r'holds a run with another optimizer\.learning_rate'):
        training.train(toy_run_config(tiny_weights, optimizer__learning_rate=0.5), interrupted)
    assert training.train(toy_run_config(tiny_weights), interrupted)['steps'] == STEPS


def test_an_edited_base_record_is_named(interrupted, tiny_weights):
    write_json(
        interrupted / 'base.json', read_json(interrupted / 'base.json') | {'fingerprint': 'x'}
    )
    with pytest.raises(UserError, match=r'base\.json was edited: .* the fingerprint in'):
        training.train(toy_run_config(tiny_weights), interrupted)


def test_a_model_is_not_loaded_by_an_edited_config(run):
    """α changes no shape: the model would give other answers without any error."""
    edit(run / 'config.json', 'adapter', 'alpha', 3.0)
    with pytest.raises(UserError, match=r'config\.json was edited: .* the adapter\.alpha in'):
        load(run)


@pytest.fixture
def with_file(tiny_weights, tmp_path):
    """Settings and directory of a run on a file, without results."""
    rows = [{'question': f'{n} and 1?', 'answer': str(n + 1)} for n in range(40)]
    write_json_lines(tmp_path / 'mine.jsonl', rows)
    settings = toy_run_config(
        tiny_weights, data__tasks=(), data__files=(str(tmp_path / 'mine.jsonl'),)
    )
    training.train(settings, tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').unlink()
    return settings, tmp_path / 'run'


def test_data_are_the_same_although_their_record_is_missing(with_file, tmp_path, capsys):
    settings, workdir = with_file
    digests = read_json(workdir / 'data.json')
    (workdir / 'data.json').unlink()
    training.train(settings, workdir)
    assert 'data.json was missing and is written again.' in capsys.readouterr().out
    assert read_json(workdir / 'data.json') == digests


@pytest.mark.parametrize('change', ['the file', 'the record', 'both', 'the record is missing'])
def test_other_data_are_refused(with_file, tmp_path, change):
    settings, workdir = with_file
    file = tmp_path / 'mine.jsonl'
    if change != 'the record':
        write_json_lines(file, read_json_lines(file)[::-1])
    if change in ('the record', 'both'):
        write_json(workdir / 'data.json', {str(file): 'f' * 64})
    if change == 'the record is missing':
        (workdir / 'data.json').unlink()
    edited = change in ('the record', 'both')
    message = r'data\.json was edited' if edited else rf'{file} has changed since the run in'
    with pytest.raises(UserError, match=message):
        training.train(settings, workdir)


def test_an_older_run_without_its_record_of_data_is_refused(with_file):
    settings, workdir = with_file
    make_older(workdir)
    (workdir / 'data.json').unlink()
    with pytest.raises(UserError, match=r'data\.json is missing from .*: restore it, or choose'):
        training.train(settings, workdir)


def test_an_older_run_goes_on_with_a_note(interrupted, tiny_weights, results, capsys):
    make_older(interrupted)
    training.train(toy_run_config(tiny_weights), interrupted)
    assert read_json(interrupted / 'results.json')['tasks'] == results['tasks']
    assert (
        f'Checkpoint {STEPS} of {interrupted} has no readable run identity (older versions stored '
        'none); config.json, base.json and data.json are used instead.\n'
    ) in capsys.readouterr().out


def test_another_base_is_refused_although_its_record_is_missing(
    interrupted, tmp_path, tiny_weights
):
    (interrupted / 'base.json').unlink()
    other = tmp_path / 'other.gguf'
    write_tiny_gguf(other, seed=1)
    with pytest.raises(UserError, match='was trained on another base model: its fingerprint is'):
        training.train(toy_run_config(other), interrupted)


def test_a_checkpoint_of_another_run_is_refused(interrupted, tiny_weights, tmp_path):
    other = toy_run_config(tiny_weights, seed=1, training__steps=STEPS + 2)
    training.train(other, tmp_path / 'other')
    number = str(STEPS + 2)
    shutil.copytree(tmp_path / 'other/checkpoints' / number, interrupted / 'checkpoints' / number)
    settings = toy_run_config(tiny_weights, training__steps=STEPS + 2)
    with pytest.raises(UserError, match=r'was edited: it no longer matches the seed'):
        training.train(settings, interrupted)
    assert (interrupted / 'checkpoints' / number).exists()


# Permitted changes.


def test_more_steps(run, tiny_weights, results, capsys):
    longer = toy_run_config(tiny_weights, training__steps=STEPS + 2)
    found = training.train(longer, run)
    assert found['steps'] == STEPS + 2
    told = capsys.readouterr().out
    assert f'Changed since the run was last started: training.steps {STEPS} → {STEPS + 2}.' in told
    assert f'Continuing {run} after step {STEPS}.' in told
    assert len(read_json_lines(run / 'metrics.jsonl')) == STEPS + 2
    assert read_json(run / 'config.json')['training']['steps'] == STEPS + 2
    # The base model's scores are unchanged, and earlier results are kept.
    assert {name: task['before'] for name, task in found['tasks'].items()} == {
        name: task['before'] for name, task in results['tasks'].items()
    }
    assert read_json(run / 'earlier/1/results.json') == results
    assert read_json(run / 'earlier/1/config.json')['training']['steps'] == STEPS
    assert (run / 'earlier/1/answers_after.jsonl').exists()
    assert training.train(longer, run) == read_json(run / 'results.json')
    assert not (run / 'earlier/2').exists()


def test_fewer_steps_than_are_made_are_refused(run, tiny_weights, results):
    with pytest.raises(UserError) as caught:
        training.train(toy_run_config(tiny_weights, training__steps=4), run)
    assert str(caught.value) == (
        f'{run} has made {STEPS} steps, and the config asks for 4: set training.steps to at least '
        f'{STEPS}, or choose another --workdir.'
    )
    assert read_json(run / 'results.json') == results
    assert read_json(run / 'config.json')['training']['steps'] == STEPS


def test_another_way_of_scoring(run, tiny_weights):
    found = training.train(toy_run_config(tiny_weights, evaluation__max_new_tokens=5), run)
    assert found['steps'] == STEPS
    assert read_json(run / 'config.json')['evaluation']['max_new_tokens'] == 5
    for when in ('before', 'after'):
        name = f'answers_{when}.jsonl'
        assert (run / 'earlier/1' / name).exists()
        assert (run / name).exists()


def test_what_leaves_the_results_as_they_are(run, tiny_weights, tmp_path, results):
    weights = shutil.copy(tiny_weights, tmp_path / 'moved.gguf')
    settings = toy_run_config(
        weights,
        training__checkpoint_every=3,
        training__remat='full',
        evaluation__batch_size=2,
        model__attention='xla',
    )
    assert training.train(settings, run) == results


@pytest.mark.parametrize(
    'field, names, expected',
    [
        ('training.steps', ('training.steps',), True),
        ('training.steps_more', ('training.steps',), False),
        ('mesh.data', ('mesh.',), True),
        ('meshes', ('mesh.',), False),
    ],
)
def test_names_of_fields(field, names, expected):
    assert FieldChange(field, 1, 2).is_one_of(names) is expected
