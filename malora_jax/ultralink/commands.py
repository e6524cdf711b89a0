"""Functions of the commands that are not stages: export, report and check_humaneval."""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from malora_jax.ultralink import release_export
from malora_jax.ultralink.evaluation import humaneval
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.settings import Settings, language_setting, setting
from malora_jax.ultralink.stage import StageRun


def export(run: StageRun[Settings]) -> tuple[str, int]:
    """Write conversations as released files; return row counts as text, and exit status 0."""
    counts = release_export.export(run.inputs, run.output)
    return '\n'.join(f'{name}: {count:,} rows' for name, count in counts.items()), 0


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Settings of the command `report`."""

    section = 'report'
    stages: Sequence[pathlib.Path] = setting(
        'Output directories of stages, finished or not; the report gives the number of items that '
        'each stage has read, dropped and kept.',
        (),
        recorded=False,
    )


def report(run: StageRun[ReportConfig]) -> tuple[str, int]:
    """Write the report on conversations; return its text, and exit status 0."""
    # Imported here because it loads Matplotlib, which no other command needs.
    from malora_jax.ultralink.report import report as write_report

    return write_report(run.inputs, run.token_counter, run.output, run.config.stages), 0


@dataclass(frozen=True)
class HumanevalConfig(Settings):
    """Settings of the command `check_humaneval`."""

    section = 'check_humaneval'
    input: pathlib.Path = setting('HumanEval file with translated docstrings.', recorded=False)
    originals: pathlib.Path = setting(
        'Original HumanEval file, such as HumanEval.jsonl.gz.', recorded=False
    )
    language: str = language_setting(
        'Language code of the docstrings, of which a file in another language is refused; default: '
        'any language',
        lambda: ('', *LANGUAGES),
        '',
    )
    workers: int = setting(
        'Number of canonical solutions that run at the same time; default: number of CPU cores.',
        os.cpu_count() or 1,
        at_least=1,
    )


def check_humaneval(run: StageRun[HumanevalConfig]) -> tuple[str, int]:
    """Check a translated HumanEval file.

    Returns:
        Report on the faults of the rows as text, and exit status: 1 if there are faults, else 0.
    """
    config = run.config
    diagnoses = humaneval.diagnose(
        config.originals, config.input, language=config.language, workers=config.workers
    )
    return humaneval.format_report(diagnoses), int(any(each.faults for each in diagnoses))
