"""The release: its version, licenses and workflows, and the wheel in a clean environment."""

import configparser
import email
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile

import pytest
import yaml

import malora_jax
from malora_jax import commands
from tests.helpers.paths import ROOT
from tests.helpers.tiny_gguf import write_tiny_gguf

# An instruction to install the project by its name, under which no package index has it.
INSTALL_BY_NAME = re.compile(
    r"""(?:(?:pip3?|pipx|conda) install|uv add) (?:-\S+ )*['"\\]*malora[-_]jax(?![\w/-])"""
)
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg', 'utf-8')
CITATION = yaml.safe_load((ROOT / 'CITATION.cff').read_text('utf-8'))
# A directory in which a user works may have packages of these names.
USERS_PACKAGE = "raise ImportError('This is the package of another project.')\n"
# A config of a user, which starts from one of the wheel's.
USERS_CONFIG = """
from configs import your_tasks


def get_config(arg):
    config = your_tasks.get_config(arg)
    config.model.name, config.model.weights = 'tiny', 'tiny.gguf'
    config.adapter.rank = 2
    config.data.files = ('sums=sums.jsonl',)
    config.data.sequence_length, config.data.batch_size = 128, 1
    config.data.held_out, config.data.validation = 4, 2
    config.training.steps, config.training.checkpoint_every = 4, 1
    config.training.evaluate_every = 0
    config.evaluation.max_new_tokens = 8
    return config
"""
USERS_SWEEP = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({'base': 'mine.py', 'seeds': (0,), 'runs': {'malora': {'arg': 'malora'}}})
"""


def repository_files() -> list[str]:
    """Return the paths of all files of the repository, also of those that are not committed."""
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in sorted({*names.split('\0')}) if (ROOT / name).is_file()]


def test_version_and_date_agree():
    changelog = (ROOT / 'CHANGELOG.md').read_text('utf-8')
    sections = re.findall(r'^## \[(.+?)\](?: - (\S+))?$', changelog, re.MULTILINE)
    assert sections[0] == ('Unreleased', '')
    assert sections[1] == (malora_jax.__version__, str(CITATION['date-released']))
    assert CITATION['version'] == malora_jax.__version__


def test_citation_names_software_and_paper():
    assert CITATION['title'] == SETUP['metadata']['name']
    assert CITATION['license'] == SETUP['metadata']['license_expression']
    assert CITATION.get('repository-code', '') == SETUP['metadata']['url']
    (paper,) = CITATION['references']
    readme = ' '.join((ROOT / 'README.md').read_text('utf-8').split())
    authors = [f'{each["family-names"]}, {each["given-names"]}' for each in paper['authors']]
    assert ' and '.join(authors) in readme
    assert paper['title'].removeprefix('MALoRA') in readme
    assert paper['url'] in readme


def test_notice_names_the_installed_versions():
    notice = ' '.join((ROOT / 'NOTICE').read_text('utf-8').split())
    requirements = (ROOT / 'requirements-quickstart.txt').read_text('utf-8')
    packages = re.findall(r'^(\S+) == (\S+)$', requirements, re.MULTILINE)
    assert packages
    for name, version in packages:
        assert f'- {name} {version}, ' in notice


def test_workflows_run_targets_of_the_makefile():
    workflows = {
        path.stem: yaml.safe_load(path.read_text('utf-8'))
        for path in (ROOT / '.github' / 'workflows').iterdir()
    }
    steps = {
        name: [step for job in workflow['jobs'].values() for step in job['steps']]
        for name, workflow in workflows.items()
    }
    scripts = {name: [each['run'] for each in steps[name] if 'run' in each] for name in steps}
    assert scripts == {'ci': ['.ci/run'], 'pages': ['make docs']}
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
    (uploaded,) = [each['with']['path'] for each in steps['pages'] if 'artifact' in str(each)]
    assert f' docs {uploaded}\n' in (ROOT / 'Makefile').read_text('utf-8')


def test_no_text_says_to_install_the_project_by_name():
    for name in repository_files():
        try:
            text = (ROOT / name).read_text('utf-8')
        except UnicodeDecodeError:
            continue
        found = INSTALL_BY_NAME.search(text)
        assert not found, f'{name}: no package index has malora_jax, but it says {found}.'


@pytest.mark.parametrize('tool', ['pip install', 'pip install -U', 'pipx install', 'uv add'])
@pytest.mark.parametrize('name', ['malora_jax', "'malora_jax[serve]'", 'malora-jax==0.2.0'])
def test_a_wrong_instruction_is_found(tool, name):
    assert INSTALL_BY_NAME.search(f'First, {tool} {name}.')
    assert INSTALL_BY_NAME.search(json.dumps(f'"{tool} {name}"'))


def test_instructions_with_a_path_are_allowed():
    for path in ('dist/malora_jax-0.2.0-py3-none-any.whl', "'.[serve]'", 'malora_jax/'):
        assert not INSTALL_BY_NAME.search(f'pip install {path}')


def test_every_command_is_listed():
    modules = {
        path.relative_to(ROOT / 'experiments').with_suffix('').as_posix()
        for path in (ROOT / 'experiments').rglob('*.py')
        if "if __name__ == '__main__':" in path.read_text('utf-8')
    }
    modules = {name.removesuffix('/__main__') for name in modules if not name.startswith('peers/')}
    assert modules == {*commands.COMMANDS}


def test_an_unknown_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['malora', 'trian'])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "Unknown command 'trian': did you mean train or ultralink?\n"


def test_a_config_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(ROOT / 'configs' / 'quickstart.py')
    assert commands.find_config('configs/quickstart.py') == shipped
    assert commands.find_config('configs/none.py') == 'configs/none.py'
    assert commands.find_config('setup.py') == 'setup.py'
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'quickstart.py').touch()
    assert commands.find_config('configs/quickstart.py') == 'configs/quickstart.py'


@pytest.mark.parametrize(
    'text, expected',
    [
        ('python -m experiments.train --config=a.py', 'malora train --config=a.py'),
        ('as experiments.train writes it', 'as malora train writes it'),
        ('python -m experiments.ultralink prune', 'malora ultralink prune'),
        ('runs/experiments.train holds no run.', 'runs/experiments.train holds no run.'),
        ('python -m experiments.peers', 'python -m experiments.peers'),
        (
            'python -c "from configs.paper import TASKS"',
            f'PYTHONPATH={ROOT} python -c "from configs.paper import TASKS"',
        ),
    ],
)
def test_commands_are_spelled_as_they_were_started(monkeypatch, text, expected):
    assert commands.spell(text) == text
    assert commands.command_line('train') == [sys.executable, '-m', 'experiments.train']
    monkeypatch.setattr(commands, '_is_malora', True)
    assert commands.spell(text) == expected
    assert commands.command_line('train') == [sys.executable, '-m', 'malora_jax', 'train']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
    """Wheel that is built from the source distribution of a copy of the repository."""
    copy = tmp_path_factory.mktemp('copy')
    for name in repository_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, '-m', 'build', '.'], cwd=copy, check=True)
    assert len([*(copy / 'dist').glob('*.tar.gz')]) == 1
    (path,) = (copy / 'dist').glob('*.whl')
    return path


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> pathlib.Path:
    """Directory of the programs in an environment that holds only the wheel."""
    path = tmp_path_factory.mktemp('environment')
    venv.create(path, with_pip=True)
    pip = [path / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', '--no-compile']
    subprocess.run([*pip, wheel], check=True)
    return path / 'bin'


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> pathlib.Path:
    """Directory of a user, with packages that have the names of the project's."""
    home = tmp_path_factory.mktemp('home')
    write_tiny_gguf(home / 'tiny.gguf')
    rows = [json.dumps({'question': f'{n} + 1?', 'answer': str(n + 1)}) for n in range(40)]
    (home / 'sums.jsonl').write_text('\n'.join(rows), 'utf-8')
    (home / 'mine.py').write_text(USERS_CONFIG, 'utf-8')
    (home / 'sweep.py').write_text(USERS_SWEEP, 'utf-8')
    for name in ('experiments', 'configs'):
        (home / name).mkdir()
        (home / name / '__init__.py').write_text(USERS_PACKAGE, 'utf-8')
    return home


@pytest.fixture(scope='module')
def malora(environment, home):
    """Function that runs `malora` in the user's directory and returns its output."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [environment / 'malora', *arguments], cwd=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.release
def test_wheel_holds_the_project_and_nothing_else(wheel):
    expected = {
        name if name.startswith('malora_jax/') else f'malora_jax/bundled/{name}'
        for name in repository_files()
        if name.startswith(('malora_jax/', 'experiments/', 'configs/'))
        and not name.startswith('experiments/peers/')
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
    metadata = {name for name in names if '.dist-info/' in name}
    assert names - metadata == expected
    assert {name.rpartition('/')[2] for name in metadata} >= {'LICENSE', 'NOTICE', 'METADATA'}


@pytest.mark.release
def test_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith('.dist-info/METADATA')]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata['Name'] == 'malora_jax'
    assert metadata['Version'] == malora_jax.__version__
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert metadata['Requires-Python'] == '>=3.11'
    assert metadata['Summary'] == SETUP['metadata']['description']
    assert {*metadata.get_all('Provides-Extra')} == {*SETUP['options.extras_require']}
    assert metadata['Description-Content-Type'] == 'text/markdown'
    readme = (ROOT / 'README.md').read_bytes()
    assert metadata.get_payload(decode=True).strip() == readme.strip()


@pytest.mark.release
def test_help_describes_the_commands(malora):
    listed = malora('--help')
    for name in commands.COMMANDS:
        assert re.search(rf'^  {name} +[A-Z]', listed, re.MULTILINE)
    assert max(map(len, listed.splitlines()[:-1])) <= 80
    text = malora('plan', '--help')
    assert 'malora plan --config=configs/quickstart.py:malora' in text
    assert 'python -m experiments' not in text


@pytest.mark.release
def test_the_names_experiments_and_configs_stay_free(environment, tmp_path):
    for name in ('experiments', 'configs'):
        command = [environment / 'python', '-c', f'import {name}']
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


@pytest.mark.release
def test_plan_with_a_config_of_the_wheel(malora):
    arguments = ('--config=configs/quickstart.py:malora', '--config.model.name=llama2-7b')
    assert json.loads(malora('plan', *arguments))['parameters']['trainable'] == 158_859_264


@pytest.mark.release
def test_train_stop_resume_and_load(environment, home, malora):
    command = [environment / 'malora', 'train', '--config=mine.py:malora', '--workdir=run']
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as process:
        while not [*home.glob('run/checkpoints/[0-9]*')] and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert 'Stopped by SIGTERM' in process.communicate()[0]
    assert process.returncode == 0
    assert 'held-out questions' in malora(*map(str, command[1:]))
    program = "import malora_jax; print(len(malora_jax.load('run').generate(['1 + 1?', '2 + 1?'])))"
    done = subprocess.run(
        [environment / 'python', '-c', program], cwd=home, capture_output=True, text=True
    )
    assert done.stdout == '2\n', done.stderr


@pytest.mark.release
def test_a_sweep_starts_its_runs(home, malora):
    malora('sweep', '--config=sweep.py', '--workdir=sweep')
    assert (home / 'sweep' / 'malora-seed0' / 'results.json').is_file()
