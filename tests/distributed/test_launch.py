"""Recipes of docs/launch: everything that can be checked without such machines."""

import pathlib
import re
import subprocess

import pytest
import yaml
from absl import flags

from configs import inter_domain
from experiments import train
from malora_jax.training import run_config

LAUNCH = pathlib.Path(__file__).parents[2] / 'docs' / 'launch'
RECIPES = sorted(LAUNCH.iterdir())


def arguments(path: pathlib.Path) -> list[str]:
    return re.findall(
        r"--[a-z][\w.]*(?:=[^\s'\\]+)?", path.read_text().split('experiments.train')[-1]
    )


def test_there_are_three():
    assert {path.name for path in RECIPES} == {'slurm.sbatch', 'kubernetes.yaml', 'cloud_tpu.sh'}


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.name)
def test_flags_are_known_and_the_config_is_valid(path):
    """Each recipe sets the mesh, and the batch size and data streams of all processes."""
    config, given = inter_domain.get_config('malora'), {}
    for argument in arguments(path):
        name, _, value = argument.removeprefix('--').partition('=')
        if name.startswith('config.'):
            given[name.removeprefix('config.')] = value
        elif name != 'config':
            assert name in train.flags.FLAGS or name in flags.FLAGS, name
    config.update_from_flattened_dict(
        {name: int(value) if value.isdigit() else value for name, value in given.items()}
    )
    run = run_config(config.to_dict())
    assert run.data.streams > 1
    assert run.mesh.fsdp > 1
    assert run.data.batch_size % run.mesh.fsdp == 0


@pytest.mark.parametrize('name', ['slurm.sbatch', 'cloud_tpu.sh'])
def test_scripts_are_bash(name):
    subprocess.run(['bash', '-n', LAUNCH / name], check=True)


def test_the_kubernetes_job_is_a_job():
    service, job = yaml.safe_load_all((LAUNCH / 'kubernetes.yaml').read_text())
    assert (service['kind'], job['kind']) == ('Service', 'Job')
    spec, pod = job['spec'], job['spec']['template']['spec']
    command = pod['containers'][0]['command']
    assert f'--processes={spec["completions"]}' in command
    assert spec['completions'] == spec['parallelism']
    assert pod['subdomain'] == service['metadata']['name']
    meeting = f'--coordinator={job["metadata"]["name"]}-0.{pod["subdomain"]}:1234'
    assert meeting in command
