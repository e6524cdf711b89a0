"""Mutation tests: without any one layer of the sandbox, a test of that layer fails.

Each mutation edits a copy of the package, because no layer of the real sandbox can be switched off.
The copy must still run benign programs, which shows that the test fails because of the missing
layer.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

import malora_jax
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

TESTS = pathlib.Path(__file__).parent
PACKAGE = pathlib.Path(malora_jax.__file__).parent
HONEST = 'test_code_execution.py::test_right_completions_pass_and_wrong_ones_fail'
LIMITS = 'test_layers.py::test_resources_are_limited'
IS_ROOT = os.geteuid() == 0


class Mutation(NamedTuple):
    """An edit of a file of `malora_jax/evaluation`, and a test that must then fail.

    Attributes:
        file: Path of the file in `malora_jax/evaluation`.
        old: Text to replace.
        new: Replacement text.
        test: Test that must fail.
        honest: Test that must still pass.
    """

    file: str
    old: str
    new: str
    test: str
    honest: str = HONEST


MUTATIONS = {
    # Limits.
    'processor time': Mutation(
        'confined/main.py', '_limit(resource.RLIMIT_CPU, seconds, seconds + 1)', 'pass', LIMITS
    ),
    'processor time, hard': Mutation(
        'confined/main.py', 'seconds, seconds + 1)', 'seconds, seconds + 100)', LIMITS
    ),
    'core dumps': Mutation('confined/main.py', '_limit(resource.RLIMIT_CORE, 0)', 'pass', LIMITS),
    'open files': Mutation(
        'confined/main.py', '_limit(resource.RLIMIT_NOFILE, 64)', 'pass', LIMITS
    ),
    'file size': Mutation(
        'confined/main.py',
        '_limit(resource.RLIMIT_FSIZE, 0)',
        'pass',
        'test_layers.py::test_no_byte_is_written_to_a_file',
    ),
    'processes': Mutation('confined/main.py', '_limit(resource.RLIMIT_NPROC, 0)', 'pass', LIMITS),
    'memory': Mutation('confined/main.py', '_limit(resource.RLIMIT_AS, memory)', 'pass', LIMITS),
    'wall time': Mutation(
        'code_execution.py',
        'communicate(timeout=limits.wall_seconds)',
        'communicate()',
        'test_layers.py::test_it_is_killed_at_the_end',
    ),
    'answer length': Mutation(
        'confined/roles.py',
        '_MAX_LINE_BYTES = 1 << 20',
        '_MAX_LINE_BYTES = 1 << 30',
        'test_sandbox.py::test_it_cannot_make_the_test_pass',
    ),
    # Process lifetimes.
    'death with the parent': Mutation(
        'confined/main.py',
        "libc.call('prctl', _PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)",
        'pass',
        'test_sandbox.py::test_it_dies_with_the_evaluation_and_leaves_nothing[9]',
    ),
    'dead parent': Mutation(
        'confined/main.py',
        'os.getppid() != parent',
        'False',
        'test_layers.py::test_it_does_not_start_once_the_evaluation_has_ended',
    ),
    'kill at the end': Mutation(
        'sandbox.py',
        'os.killpg(process.pid, signal.SIGKILL)',
        'pass',
        'test_layers.py::test_it_is_killed_at_the_end',
    ),
    'session': Mutation(
        'sandbox.py',
        'start_new_session=True',
        'start_new_session=False',
        'test_layers.py::test_it_is_in_a_session_of_its_own',
    ),
    'ends of the channel': Mutation(
        'code_execution.py',
        '        left.close()\n        right.close()\n',
        '',
        'test_layers.py::test_the_examiner_notices_that_the_candidate_has_ended',
    ),
    # Kernel protections.
    'no new privileges': Mutation(
        'confined/main.py',
        "libc.call('prctl', _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)",
        'pass',
        'test_layers.py::test_no_program_gains_privileges',
        # Without it, neither Landlock nor seccomp work, and root is refused.
        honest='test_layers.py::test_honest_programs_run',
    ),
    'Landlock': Mutation(
        'confined/landlock.py',
        "libc.call('syscall', _RESTRICT_SELF, rules, 0)",
        'pass',
        'test_sandbox.py::test_it_reads_nothing_but_libraries',
    ),
    'Landlock, packages': Mutation(
        'confined/landlock.py',
        "_PACKAGES = ('site-packages', 'dist-packages')",
        '_PACKAGES = ()',
        'test_sandbox.py::test_it_reads_nothing_but_libraries',
    ),
    'seccomp, sockets': Mutation(
        'confined/seccomp.py',
        "libc.call('prctl', _PR_SET_SECCOMP, _MODE_FILTER, length_and_address, 0, 0)",
        'pass',
        'test_sandbox.py::test_it_opens_no_socket',
    ),
    'seccomp, threads': Mutation(
        'confined/seccomp.py',
        "libc.call('prctl', _PR_SET_SECCOMP, _MODE_FILTER, length_and_address, 0, 0)",
        'pass',
        'test_sandbox.py::test_it_starts_signals_and_changes_no_process[thread]',
    ),
    'seccomp, files': Mutation(
        'confined/seccomp.py',
        "libc.call('prctl', _PR_SET_SECCOMP, _MODE_FILTER, length_and_address, 0, 0)",
        'pass',
        'test_sandbox.py::test_it_changes_no_file',
    ),
    'seccomp, unlisted calls': Mutation(
        'confined/seccomp.py',
        '(_RETURN, 0, 0, _FAIL | errno.ENOSYS)]',
        '(_RETURN, 0, 0, _ALLOW)]',
        'test_sandbox.py::test_it_opens_no_socket',
    ),
    'seccomp, writing': Mutation(
        'confined/seccomp.py',
        'writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC',
        'writing = 0',
        'test_layers.py::test_the_layer_alone_stops_attempts[seccomp]',
    ),
    'seccomp, owner of a descriptor': Mutation(
        'confined/seccomp.py',
        '_allow_unless(_GREATER, 3, machine.fcntl',
        '_allow_unless(_GREATER, 1000, machine.fcntl',
        'test_layers.py::test_no_descriptor_sends_signals',
    ),
    # Resources that a process receives.
    'environment': Mutation(
        'sandbox.py',
        'env=_ENVIRONMENT',
        'env={**os.environ, **_ENVIRONMENT}',
        'test_sandbox.py::test_it_finds_an_empty_world',
    ),
    'directory': Mutation(
        'sandbox.py', 'cwd=directory,', '', 'test_sandbox.py::test_it_finds_an_empty_world'
    ),
    'descriptors': Mutation(
        'sandbox.py',
        'pass_fds=descriptors',
        'close_fds=bool([os.set_inheritable(d, True) for d in descriptors] and None)',
        'test_layers.py::test_it_inherits_no_file',
    ),
    'output': Mutation(
        'sandbox.py',
        'stdout: int = subprocess.DEVNULL',
        'stdout: int = 1',
        'test_layers.py::test_what_it_prints_is_lost',
    ),
    'error output': Mutation(
        'sandbox.py',
        'stdout, subprocess.DEVNULL\n',
        'stdout, 2\n',
        'test_layers.py::test_what_it_prints_is_lost',
    ),
    'packages': Mutation(
        'sandbox.py',
        "'-S', ",
        '',
        'test_layers.py::test_it_inherits_no_environment_directory_or_package',
    ),
    'own modules': Mutation(
        'sandbox.py',
        'sys.path.pop()',
        'pass',
        'test_layers.py::test_it_inherits_no_environment_directory_or_package',
    ),
    'root without protection': Mutation(
        'sandbox.py',
        'os.geteuid() == 0',
        'False',
        'test_sandbox.py::test_root_without_protection_is_refused',
    ),
    # The two roles.
    'secrecy of the test': Mutation(
        'code_execution.py',
        "{'program': problem.prompt",
        "{'program': problem.test + problem.prompt",
        'test_sandbox.py::test_it_never_holds_the_test',
    ),
    'plain data': Mutation(
        'confined/serialization.py',
        "    'iterator': iter,\n",
        "    'iterator': iter,\n    'eval': eval,\n",
        'test_sandbox.py::test_it_cannot_make_the_test_pass',
    ),
    'classes': Mutation(
        'confined/roles.py',
        ' and value.__module__ == serialization.PROGRAM',
        '',
        'test_layers.py::test_the_examiner_runs_no_class_that_the_prompt_imports',
    ),
    'swallowed failures': Mutation(
        'confined/roles.py',
        'remote.failure or verdict',
        'verdict',
        'test_code_execution.py::'
        'test_no_test_passes_that_swallows_a_failed_call[raise SystemExit(0)-]',
    ),
}
if IS_ROOT:
    MUTATIONS['privileges of root'] = Mutation(
        'confined/seccomp.py',
        "libc.call('capset', struct.pack('Ii', _CAPABILITY_VERSION_3, 0), bytes(24))",
        'pass',
        'test_layers.py::test_root_has_no_privileges',
    )


def copy_package(folder: pathlib.Path) -> pathlib.Path:
    """Make a copy of malora_jax whose folder `evaluation` can be edited.

    Everything else is a symbolic link to the original.

    Returns:
        Path of the copied folder `evaluation`.
    """
    package = folder / 'malora_jax'
    package.mkdir()
    for entry in PACKAGE.iterdir():
        if entry.name != 'evaluation':
            (package / entry.name).symlink_to(entry)
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(PACKAGE / 'evaluation', package / 'evaluation', ignore=ignored)
    return package / 'evaluation'


def outcomes(folder: pathlib.Path, *tests: str) -> dict[str, str]:
    """Run tests on the package in a folder, and return the outcome of each."""
    options = ['-p', 'no:cacheprovider', '--noconftest', '-q', '-rA', '-c', os.devnull]
    # On the path, the edited package precedes the tests and, next to them, the original package.
    path = os.pathsep.join([str(folder), str(ROOT)])
    process = subprocess.run(
        [
            *(sys.executable, '-m', 'pytest', '--import-mode=importlib', *options),
            *(str(TESTS / test) for test in tests),
        ],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path, 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    line = r'^(PASSED|FAILED|SKIPPED|ERROR) \S*?(\w+\.py::.*?)(?: - .*)?$'
    lines = re.findall(line, process.stdout, re.MULTILINE)
    assert len(lines) == len(tests), process.stdout + process.stderr
    return {test: outcome for outcome, test in lines}


def test_the_copy_passes_without_an_edit(tmp_path):
    copy_package(tmp_path)
    tests = {test for mutation in MUTATIONS.values() for test in mutation[-2:]}
    assert set(outcomes(tmp_path, *tests).values()) == {'PASSED'}


@pytest.mark.parametrize('name', MUTATIONS)
def test_without_the_layer_its_test_fails(name, tmp_path):
    mutation = MUTATIONS[name]
    path = copy_package(tmp_path) / mutation.file
    source = path.read_text()
    assert source.count(mutation.old) == 1
    path.write_text(source.replace(mutation.old, mutation.new))
    expected = {mutation.test: 'FAILED', mutation.honest: 'PASSED'}
    assert outcomes(tmp_path, *expected) == expected
