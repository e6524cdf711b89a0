"""Commands that get one to five SIGTERMs at random times until they have finished.

Every process must end with the documented status and without a crash, and the outcome must be
bitwise equal to that of an undisturbed command. Times are measured from the moment at which a
process handles signals. Before that, while the interpreter starts, SIGTERM ends it like any
process.
"""

import json

import pytest

from tests.helpers.signals import (
    SWEEP_RUN_NAMES,
    assert_same_outcome,
    make_home,
    run_undisturbed,
    run_with_sigterms,
    sweep_arguments,
)

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope='module', autouse=True)
def compile_little(commands_compile_quickly):
    """Disable most optimizations, and cache all programs: compiling would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp('home'), 12, 2, 4)


@pytest.fixture(scope='module')
def trained(home):
    """Directory and duration in seconds of an undisturbed run."""
    workdir = home / 'trained'
    _, seconds = run_undisturbed('train', f'--config={home}/base.py', f'--workdir={workdir}')
    return workdir, seconds


def test_training(home, trained, attempts, tmp_path):
    alone, seconds = trained
    for number, rng in enumerate(attempts(2)):
        workdir = tmp_path / str(number)
        given = f'--config={home}/base.py', f'--workdir={workdir}'
        run_with_sigterms(rng, seconds, [0], 'train', *given)
        assert_same_outcome(workdir, alone)


def test_a_sweep_of_a_process_for_each_run(home, trained, attempts, tmp_path):
    """The sweep's first run is the run of `trained`."""
    alone, seconds = trained
    for number, rng in enumerate(attempts(1)):
        workdir = tmp_path / str(number)
        given = sweep_arguments(home, workdir, **{'together': 1, 'config.seeds': '(0,)'})
        run_with_sigterms(rng, 1.5 * seconds, [0], 'sweep', *given)
        assert_same_outcome(workdir / SWEEP_RUN_NAMES[0], alone)


@pytest.fixture
def only_if_long(request):
    """Skip a test that starts too many processes for continuous integration."""
    if not request.config.getoption('fuzz_minutes'):
        pytest.skip('only with --fuzz-minutes')


def test_a_sweep_of_runs_that_train_together(only_if_long, home, attempts, tmp_path):
    alone = tmp_path / 'alone'
    _, seconds = run_undisturbed('sweep', *sweep_arguments(home, alone, together=2))
    for number, rng in enumerate(attempts(0)):
        workdir = tmp_path / str(number)
        run_with_sigterms(rng, seconds, [0], 'sweep', *sweep_arguments(home, workdir, together=2))
        for name in SWEEP_RUN_NAMES:
            assert_same_outcome(workdir / name, alone / name)


def test_an_evaluation(only_if_long, home, trained, attempts):
    given = f'--config={home}/base.py', f'--workdir={trained[0]}'
    out, seconds = run_undisturbed('evaluate', *given)
    for rng in attempts(0):
        # The evaluation has status 0 if it finishes before the signal.
        found = run_with_sigterms(rng, seconds, [0, 143], 'evaluate', *given)
        assert json.loads(found.stdout) == json.loads(out)


def test_answers_to_a_file(only_if_long, home, trained, attempts, tmp_path):
    def given(name):
        files = f'--input={home}/prompts.jsonl', f'--output={tmp_path}/{name}'
        return f'--workdir={trained[0]}', *files, '--max_new_tokens=16', '--batch_size=2'

    _, seconds = run_undisturbed('generate', *given('alone'))
    expected = (tmp_path / 'alone').read_bytes()
    for number, rng in enumerate(attempts(0)):
        run_with_sigterms(rng, seconds, [0], 'generate', *given(number))
        assert (tmp_path / str(number)).read_bytes() == expected
