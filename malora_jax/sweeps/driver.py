"""Driver of a sweep: checks its config, trains its runs here or on SLURM, and reports on them."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from malora_jax.errors import UserError
from malora_jax.runs.records import SUFFIX, restore_record, write_record
from malora_jax.sweeps import directory, slurm
from malora_jax.sweeps.base_answers import copy_base_answers
from malora_jax.sweeps.config import sweep_config
from malora_jax.sweeps.expand import expand
from malora_jax.sweeps.joint_groups import joint_groups
from malora_jax.sweeps.progress import ProgressDisplay, count_states
from malora_jax.sweeps.report import write_report
from malora_jax.sweeps.runner import Job, Runner
from malora_jax.training import run_config
from malora_jax.training.prepare import data_digests
from malora_jax.training.workdir import lock_workdir


class SweepDriver:
    """Driver of one sweep, whose runs and report are in one directory.

    Attributes:
        errors: Error messages of the failed runs by name.

    Example:
        def make_job(workdir, names):  # `names` has one run, because of max_joint_runs=1.
            config = f'--config=configs/saved.py:{config_path(workdir, names[0])}'
            train = [sys.executable, '-m', 'experiments.train', config]
            return Job(tuple(names), [*train, f'--workdir={workdir / names[0]}'])

        driver = SweepDriver(config, pathlib.Path('runs/rank'), make_job, max_joint_runs=1)
        print(driver.run(max_processes=2))
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: pathlib.Path,
        make_job: Callable[[pathlib.Path, Sequence[str]], Job],
        max_joint_runs: int = 0,
        records: pathlib.Path | None = None,
    ):
        """Check the config and the directory, without writing anything.

        Args:
            config: Config of the sweep, as plain dicts.
            workdir: Directory of the sweep.
            make_job: Function that returns the job that trains one run, or several runs jointly.
                Its arguments are the directory of the sweep and the names of the runs.
            max_joint_runs: Maximum number of runs that one process trains jointly; 0 for as many as
                fit.
            records: Directory of the records of finished runs. A run with a record is finished, and
                each run that finishes gets one. None for no records.

        Raises:
            UserError: `expand` refuses the config, or `directory.check` refuses the directory.
        """
        self._sweep, self._runs = sweep_config(config), expand(config)
        self._workdir, self._make_job, self._max_joint_runs = workdir, make_job, max_joint_runs
        self._records = records
        directory.check(workdir, self._runs)
        self.errors: dict[str, str] = {}

    def run(self, max_processes: int, gpus: Sequence[str] = ()) -> str:
        """Complete the runs on this machine, and report on them.

        Args:
            max_processes: Maximum number of concurrent processes.
            gpus: Numbers of the GPUs; each process gets one. () if each process sees all devices.

        Returns:
            The report in Markdown.

        Raises:
            UserError: Another process is working on the sweep, or no run has finished.
        """
        steps = {name: run.config['training']['steps'] for name, run in self._runs.items()}
        with lock_workdir(self._workdir):
            directory.write(self._workdir, self._sweep.base, self._runs)
            self._synchronize_records()
            runner = Runner(
                self._workdir,
                steps,
                self._single_run_command,
                max_processes,
                gpus,
                on_start=self._copy_base_answers,
                on_finished=self._write_record,
            )
            self.errors = runner.errors
            with ProgressDisplay() as progress:
                runner.run(self._jobs(max_processes), progress.show)
            print(count_states(runner.statuses()) + '.')
        return self.report()

    def launch(self, max_jobs: int, options: Sequence[str]) -> str:
        """Write a SLURM array job of the unfinished runs, and submit it.

        Args:
            max_jobs: Maximum number of concurrent jobs; 0 for no limit.
            options: Command-line options of sbatch.

        Returns:
            A sentence on the submission; or the report in Markdown, if all runs are finished.

        Raises:
            UserError: Another process is working on the sweep, or SLURM refuses the job.
        """
        jobs = self._jobs(1)
        if not jobs:
            return self.report()
        with lock_workdir(self._workdir):
            directory.write(self._workdir, self._sweep.base, self._runs)
            return slurm.submit(slurm.write_array_job(self._workdir, jobs, max_jobs, options))

    def report(self) -> str:
        """Write the report on the finished runs, and return it in Markdown.

        Raises:
            UserError: No run is finished.
        """
        return write_report(self._workdir, self._sweep, self._runs, self.errors)

    def _jobs(self, max_processes: int) -> list[Job]:
        """Return the jobs of the unfinished runs; joint groups are split to fill all processes.

        Unless runs train jointly, the first seed of every row is trained first, then the second and
        so on, so that an unfinished sweep compares as many rows as possible.
        """
        todo = {
            name: self._runs[name].config
            for name in sorted(self._runs, key=self._seed_index)
            if not directory.is_finished(self._workdir, name)
        }
        runs_per_process = max(1, -(-len(todo) // max_processes))
        max_runs = min(self._max_joint_runs or runs_per_process, runs_per_process)
        groups = joint_groups(todo) if max_runs > 1 else [[name] for name in todo]
        return [
            self._make_job(self._workdir, names[start : start + max_runs])
            for names in groups
            for start in range(0, len(names), max_runs)
        ]

    def _seed_index(self, name: str) -> int:
        run = self._runs[name]
        return list(self._sweep.seeds_of(run.variant)).index(run.seed)

    def _synchronize_records(self) -> None:
        """Restore the runs that only have a record, and record those that have none."""
        for name in self._runs:
            if directory.is_finished(self._workdir, name):
                self._write_record(name)
            elif (record := self._record(name)) and record.exists():
                restore_record(record, self._workdir / name)

    def _copy_base_answers(self, name: str) -> None:
        config = self._runs[name].config
        with contextlib.suppress(UserError):  # The run itself reports the error.
            digests = data_digests(run_config(config))
            copy_base_answers(self._workdir, name, config, digests)

    def _write_record(self, name: str) -> None:
        record = self._record(name)
        if record and not record.exists():
            write_record(self._workdir / name, record)

    def _record(self, name: str) -> pathlib.Path | None:
        return self._records / f'{name}{SUFFIX}' if self._records else None

    def _single_run_command(self, name: str) -> Sequence[str]:
        return self._make_job(self._workdir, [name]).command
