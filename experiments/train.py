"""Fine-tune a base model on a mixture of tasks; the same command resumes an interrupted run.

For a run on several hosts, start the same command on each host with --distributed, which finds the
other hosts on Cloud TPU, SLURM, Kubernetes and Open MPI, or with --coordinator, --processes and
--process.

Example:
    python -m experiments.train --config=configs/quickstart.py:malora --workdir=runs/quickstart
"""

from typing import Any

from absl import flags

from experiments import cli
from malora_jax import training
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.distributed import hosts
from malora_jax.training.results import format_table

_DISTRIBUTED = flags.DEFINE_boolean('distributed', False, 'Join the other processes of the run.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of the first process.')
_PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes there are.', lower_bound=1)
_PROCESS = flags.DEFINE_integer('process', None, 'Which this one is, from 0.', lower_bound=0)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of the run, or gs://BUCKET/PATH.', required=True
)


def main(config: dict[str, Any]) -> None:
    """Train the model, and print the table of scores."""
    if _DISTRIBUTED.value or _COORDINATOR.value:
        hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    results = training.train(config, cli.directory(_WORKDIR), write_run_plots)
    hosts.say(format_table(results))


if __name__ == '__main__':
    cli.run(main)
