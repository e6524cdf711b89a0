r"""Fine-tune a base model on a mixture of tasks; the same command resumes an interrupted run.

For a run on several hosts, start the same command on each host with --distributed, which finds the
other hosts on Cloud TPU, SLURM, Kubernetes and Open MPI. Elsewhere, start it with --coordinator and
--processes, the same on all hosts, and --process, different on each host.

Examples:
    python -m experiments.train --config=configs/quickstart.py:malora --workdir=runs/quickstart
    python -m experiments.train --config=configs/quickstart.py:molora --workdir=runs/molora \
      --config.adapter.rank=4 --config.data.tasks="('chain_sum', 'gcd')"
    python -m experiments.train --config=configs/intra_domain.py:malora --workdir=runs/pod \
      --distributed
"""

import shlex
from typing import Any

from absl import flags

from experiments import cli
from malora_jax import commands, training
from malora_jax.analysis.run_plots import write_run_plots
from malora_jax.distributed import hosts
from malora_jax.training.results import format_table

_DISTRIBUTED = flags.DEFINE_boolean(
    'distributed',
    False,
    'Train on several hosts, whose processes are found automatically (Cloud TPU, SLURM, '
    'Kubernetes or Open MPI).',
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'Network address HOST:PORT of the first process of a run on several hosts, if it cannot be '
    'found automatically.',
)
_PROCESSES = flags.DEFINE_integer(
    'processes',
    None,
    'With --coordinator: number of processes of a run on several hosts.',
    lower_bound=1,
)
_PROCESS = flags.DEFINE_integer(
    'process',
    None,
    'With --coordinator: index of this process in a run on several hosts, from 0.',
    lower_bound=0,
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run, local or gs://BUCKET/PATH. A new directory is created; if the directory '
    'already holds this run, the run resumes. Required.',
    required=True,
)


def main(config: dict[str, Any]) -> None:
    """Train the model, and print the table of scores and the next commands."""
    if _DISTRIBUTED.value or _COORDINATOR.value:
        hosts.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    results = training.train(config, cli.flag_path(_WORKDIR), write_run_plots)
    hosts.print_on_first(format_table(results))
    workdir = shlex.quote(_WORKDIR.value)
    tasks = results['adapter'].get('tasks', ())
    task = f' --task={shlex.quote(tasks[0])}' if len(tasks) > 1 else ''
    hosts.print_on_first(
        commands.spell(
            f'The results are in {workdir}. Next, chat with the model, or write a report:\n'
            f'  python -m experiments.generate --workdir={workdir}{task}\n'
            f'  python -m experiments.analyze --workdir={workdir}'
        )
    )


if __name__ == '__main__':
    cli.run(main)
