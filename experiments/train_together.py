"""Train several runs of a sweep jointly, in one process and with one copy of the base model.

experiments.sweep starts this command. Each run has its own directory, as experiments.train writes
it. The exit status is 1 if a run has failed; the last line of its log, in sweep/logs of --workdir,
gives the reason.

Example:
    python -m experiments.train_together --workdir=runs/rates --runs=malora-seed0,malora-seed1
"""

import sys

from absl import flags

from experiments import cli
from malora_jax import sweeps
from malora_jax.sweeps.joint import train_together
from malora_jax.training.config_format import read_config

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the sweep. Required.', required=True)
_RUNS = flags.DEFINE_list(
    'runs', None, 'Names of the runs to train, separated by commas. Required.', required=True
)
_MEASURE = flags.DEFINE_boolean(
    'measure',
    True,
    'First measure whether training the runs jointly is faster than one after another; if it is '
    'not, train them one after another.',
)


def main() -> None:
    """Train the runs, and print the errors of failed runs."""
    workdir = cli.flag_path(_WORKDIR)
    configs = {name: read_config(sweeps.config_path(workdir, name)) for name in _RUNS.value}
    errors = train_together(configs, workdir, _MEASURE.value)
    for name, error in errors.items():
        print(f'{name}: {error}', file=sys.stderr, flush=True)
    if errors:
        sys.exit(1)


if __name__ == '__main__':
    cli.run_without_config(main)
