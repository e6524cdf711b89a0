"""A sweep from its config to its report."""

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
from malora_jax.training.workdir import locked


class Sweeping:
    """A sweep and its directory.

    Attributes:
        errors: by run that has failed, why.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: pathlib.Path,
        process: Callable[[pathlib.Path, Sequence[str]], Job],
        together: int = 0,
    ):
        """Checks everything, and writes nothing.

        Args:
            config: of configs/sweeps, as plain dicts.
            workdir: of the sweep.
            process: what makes one run, or several that train jointly, given the workdir and their
                names.
            together: how many runs one process may train at once, at most; 0 = as many as fit.

        Raises:
            UserError: as `expand` and `directory.check`.
        """
        self._sweep, self._runs = sweep_config(config), expand(config)
        self._workdir, self._process, self._together = workdir, process, together
        directory.check(workdir, self._runs)
        self.errors: dict[str, str] = {}

    def run(self, at_once: int, gpus: Sequence[str] = ()) -> str:
        """Makes the runs here.

        Args:
            at_once: how many processes at the same time.
            gpus: numbers of GPUs, of which each process gets one; () = each sees all devices.

        Returns:
            The report.

        Raises:
            UserError: another process is at work on the sweep, or no run could be finished.
        """
        steps = {name: run.config['training']['steps'] for name, run in self._runs.items()}
        with locked(self._workdir):
            directory.write(self._workdir, self._sweep.base, self._runs)
            runner = Runner(self._workdir, steps, self._command, at_once, gpus)
            self.errors = runner.errors
            with Progress() as progress:
                runner.run(self._jobs(at_once), progress.show)
            print(summary(runner.statuses()) + '.')
        return self.report()

    def launch(self, at_once: int, options: Sequence[str]) -> str:
        """Writes an array job of the runs that are not finished, and submits it.

        Args:
            at_once: how many processes at the same time; 0 = all.
            options: of sbatch.

        Returns:
            What came of it; or the report, if all runs are finished.
        """
        jobs = self._jobs(1)
        if not jobs:
            return self.report()
        with locked(self._workdir):
            directory.write(self._workdir, self._sweep.base, self._runs)
            return slurm.submit(slurm.write_array(self._workdir, jobs, at_once, options))

    def report(self) -> str:
        """Writes the report on the runs that are finished.

        Raises:
            UserError: none is.
        """
        return write_report(self._workdir, self._sweep, self._runs, self.errors)

    def _jobs(self, at_once: int) -> list[Job]:
        """What is not finished, with joint groups in one process; enough for all at once."""
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
