"""Packages import only from lower layers, and finished runs have one reader."""

import pathlib

from tests.count_code import ROOT, layers, readers_of_runs, upward_imports


def test_packages_import_from_lower_layers_only():
    assert upward_imports(ROOT, layers()) == []


def test_every_package_is_in_the_table():
    packages = {path.parent.name for path in (ROOT / 'malora_jax').glob('*/__init__.py')}
    named = {name.partition('/')[2] for name in layers() if '/' in name}
    assert packages == named and layers()[-1] == 'malora_jax'


def test_an_upward_import_is_found(tmp_path: pathlib.Path):
    module = tmp_path / 'malora_jax' / 'data' / 'tasks.py'
    module.parent.mkdir(parents=True)
    module.write_text('def f():\n    from malora_jax.models import Decoder\n')
    assert upward_imports(tmp_path, layers()) == [
        'malora_jax/data/tasks.py:2 imports malora_jax.models.Decoder'
    ]


def test_one_class_reads_finished_runs():
    assert readers_of_runs() == ['malora_jax/runs/loading.py: LoadedRun']
