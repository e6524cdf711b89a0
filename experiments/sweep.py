r"""Complete the runs of a sweep and report on them; the same command resumes an interrupted sweep.

A sweep has a config of its own, such as configs/sweeps/rank.py, which names the config of its runs
in the field `base`. List the fields of this sweep with
    python -c "from configs.sweeps.rank import get_config; print(get_config())"

Finished runs are skipped, interrupted runs resume, and failed runs are tried once more. Each run
has its own directory in --workdir, next to the report: report.md, runs.csv and plots. The exit
status is 1 if a run has failed.

Similar runs train jointly, in one process, if they fit into memory and that is faster. Such runs
differ only in seed, ranks, learning rates, weight decay, gradient clipping, α, β, dropout rate or
load-balancing weight. A run without dropout cannot train jointly with a run that has dropout; the
same holds for the load-balancing loss. --together=1 trains each run alone. --together=4 trains up
to four runs jointly, without measuring whether that is faster.

Flags by group:
    sweep    --config, --workdir
    local    --jobs, --gpus, --together
    SLURM    --launcher=slurm, --sbatch, --jobs, --together
    report   --report, --records

Examples:
    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank
    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank --jobs=4
    python -m experiments.sweep --config=configs/sweeps/rank.py --workdir=runs/rank \
      --launcher=slurm --sbatch="--gpus=1 --time=12:00:00"
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli
from malora_jax import cloud_storage, commands, sweeps
from malora_jax.errors import UserError
from malora_jax.sweeps import gpus, slurm
from malora_jax.sweeps.runner import Job

_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the sweep, on a local disk. A new directory is created; if the directory already '
    'holds this sweep, the sweep resumes. Required.',
    required=True,
)
_JOBS = flags.DEFINE_integer(
    'jobs',
    None,
    'Maximum number of processes that train at the same time. Default: one process per GPU in '
    '--gpus; one process if --gpus is not given; no limit with --launcher=slurm.',
    lower_bound=1,
)
_GPUS = flags.DEFINE_list(
    'gpus',
    [],
    'Numbers of the GPUs to use, such as 0,1,2,3; each training process gets one GPU.',
)
_TOGETHER = flags.DEFINE_integer(
    'together',
    0,
    'Maximum number of runs that one process trains jointly. 1 = train each run alone. 0 = as many '
    'as fit into memory, if a measurement shows that joint training is faster. 2 or more = at most '
    'this many, as far as they fit into memory, without the measurement.',
    lower_bound=0,
)
_LAUNCHER = flags.DEFINE_enum(
    'launcher',
    'local',
    ['local', 'slurm'],
    'Where to train: local = on this machine; slurm = submit an array job to SLURM.',
)
_SBATCH = flags.DEFINE_string(
    'sbatch',
    '',
    'With --launcher=slurm: command-line options of sbatch for the array job, such as '
    '"--gpus=1 --time=12:00:00".',
)
_REPORT = flags.DEFINE_boolean(
    'report', False, 'Only write and print the report on the finished runs; train nothing.'
)
_RECORDS = flags.DEFINE_string(
    'records',
    None,
    'Directory of compact records of finished runs: config, metrics and scores without texts and '
    'weights. Each run that finishes is recorded; a run that has a record counts as finished, also '
    'on another machine.',
)


def _make_job(workdir: pathlib.Path, names: Sequence[str]) -> Job:
    """Return the job that trains one run, or several runs jointly.

    Args:
        workdir: Directory of the sweep.
        names: Names of the runs, at least one.
    """
    if len(names) > 1:
        command = [
            *commands.command_line('train_together'),
            f'--workdir={workdir}',
            f'--runs={",".join(names)}',
            f'--measure={_TOGETHER.value == 0}',
        ]
    else:
        config = f'--config=configs/saved.py:{sweeps.config_path(workdir, names[0])}'
        command = [*commands.command_line('train'), config, f'--workdir={workdir / names[0]}']
    return Job(tuple(names), command)


def main(config: dict[str, Any]) -> None:
    """Run or launch the sweep, and print its report.

    Raises:
        UserError: --workdir is in a bucket.
    """
    workdir = cli.flag_path(_WORKDIR)
    if cloud_storage.remote_path(workdir) != workdir:
        raise UserError(
            f'--workdir={_WORKDIR.value}: the directory of a sweep must be on a local disk, not in '
            'a bucket.'
        )
    records = pathlib.Path(_RECORDS.value) if _RECORDS.value else None
    sweep = sweeps.SweepDriver(config, workdir, _make_job, _TOGETHER.value, records)
    if _REPORT.value:
        print(sweep.report())
    elif _LAUNCHER.value == 'slurm':
        print(sweep.launch(_JOBS.value or 0, slurm.parse_sbatch_options(_SBATCH.value)))
    else:
        gpus.check(_GPUS.value)
        at_once = _JOBS.value or len(_GPUS.value) or 1
        print(sweep.run(at_once, _GPUS.value))
    if sweep.errors:
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
