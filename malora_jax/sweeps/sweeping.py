"""Sweep from its config to its report: check, run or launch, and report."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from malora_jax.sweeps import directory, slurm
from malora_jax.sweeps.config import sweep_config
from malora_jax.sweeps.expand import expand
from malora_jax.sweeps.joint_groups import joint_groups
from malora_jax.sweeps.progress import Progress, summary
from malora_jax.sweeps.report import write_report
from malora_jax.sweeps.runner import Job, Runner
from malora_jax.training.workdir import lock_workdir


class Sweeping:
    """A sweep in its directory.

    Attributes:
        errors: Error messages of the failed runs by name.

    Example:
        sweeping = Sweeping(config, pathlib.Path('runs/rank'), process)
        print(sweeping.run(at_once=2))
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: pathlib.Path,
        process: Callable[[pathlib.Path, Sequence[str]], Job],
        together: int = 0,
    ):
        """Check the config and the directory, without writing anything.

        Args:
            config: Config of the sweep, as plain dicts.
            workdir: Directory of the sweep.
            process: Function of the workdir and run names that returns the job to train one run, or
                several runs jointly.
            together: Maximum number of runs that one process trains jointly; 0 for as many as fit.

        Raises:
            UserError: `expand` refuses the config, or `directory.check` refuses the directory.
        """
        self._sweep, self._runs = sweep_config(config), expand(config)
        self._workdir, self._process, self._together = workdir, process, together
        directory.check(workdir, self._runs)
        self.errors: dict[str, str] = {}

    def run(self, at_once: int, gpus: Sequence[str] = ()) -> str:
        """Complete the runs on this machine.

        Args:
            at_once: Maximum number of concurrent processes.
            gpus: Numbers of GPUs; each process gets one. () if each process sees all devices.

        Returns:
            The report in Markdown.

        Raises:
            UserError: Another process is working on the sweep, or no run has finished.
        """
        steps = {name: run.config['training']['steps'] for name, run in self._runs.items()}
        with lock_workdir(self._workdir):
            directory.write(self._workdir, self._sweep.base, self._runs)
            runner = Runner(self._workdir, steps, self._command, at_once, gpus)
            self.errors = runner.errors
            with Progress() as progress:
                runner.run(self._jobs(at_once), progress.show)
            print(summary(runner.statuses()) + '.')
        return self.report()

    def launch(self, at_once: int, options: Sequence[str]) -> str:
        """Write an array job of the unfinished runs, and submit it.

        Args:
            at_once: Maximum number of concurrent jobs; 0 for no limit.
            options: Options of sbatch.

        Returns:
            A sentence about the outcome; or the report, if all runs are finished.

        Raises:
            UserError: Another process is working on the sweep, or SLURM refuses the job.
        """
        jobs = self._jobs(1)
        if not jobs:
            return self.report()
        with lock_workdir(self._workdir):
            directory.write(self._workdir, self._sweep.base, self._runs)
            return slurm.submit(slurm.write_array(self._workdir, jobs, at_once, options))

    def report(self) -> str:
        """Write the report on the finished runs, and return it in Markdown.

        Raises:
            UserError: No run is finished.
        """
        return write_report(self._workdir, self._sweep, self._runs, self.errors)

    def _jobs(self, at_once: int) -> list[Job]:
        """Return the jobs of the unfinished runs; joint groups are split to fill all processes."""
        todo = {
            name: run.config
            for name, run in self._runs.items()
            if not directory.is_finished(self._workdir, name)
        }
        share = max(1, -(-len(todo) // at_once))
        most = min(self._together or share, share)
        return [
            self._process(self._workdir, names[start : start + most])
            for names in joint_groups(todo)
            for start in range(0, len(names), most)
        ]

    def _command(self, name: str) -> Sequence[str]:
        return self._process(self._workdir, [name]).command
