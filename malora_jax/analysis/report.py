"""Reports about runs: an HTML page, a Markdown page, their plots, and their numbers as JSON."""

import pathlib
from collections.abc import Iterator, Sequence

from malora_jax.analysis import page
from malora_jax.analysis.adapter_weights import read_adapter_weights
from malora_jax.analysis.page import Section, Text
from malora_jax.analysis.sections.answers import answers_section
from malora_jax.analysis.sections.costs import costs_section
from malora_jax.analysis.sections.overview import overview_section
from malora_jax.analysis.sections.routing import routing_section
from malora_jax.analysis.sections.scores import scores_section
from malora_jax.analysis.sections.seesaw import seesaw_section
from malora_jax.analysis.sections.similarity import similarity_section
from malora_jax.analysis.sections.spectra import spectra_section
from malora_jax.analysis.sections.summary import summary_section
from malora_jax.analysis.sections.tasks import tasks_section
from malora_jax.runs import LoadedRun, SeedGroup, read_runs, seed_groups
from malora_jax.runs.published import TABLES

# With more runs than this, the title gives the number of runs instead of their names.
_MAX_NAMES = 4


def write_report(
    workdirs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    table: str | None = None,
    weights: str | None = None,
    allow_unfinished: bool = False,
    routing: bool = True,
    max_questions: int = 32,
) -> list[Section]:
    """Write `report.html`, `report.md`, `analysis.json` and the plots.

    To add a section, write a function that returns a `Section` into `sections/`, and yield it in
    `_sections` below.

    Args:
        workdirs: Directories of runs on one base model; each may also hold several such runs.
        output: Directory to write to. It is created if it does not exist.
        table: Key of `TABLES`, such as 'table2': table of the paper whose rows are shown next
            to the runs. None for no table.
        weights: Location of the base model's weights, if they have moved since training.
        allow_unfinished: Whether to accept unfinished runs that `workdirs` names directly.
        routing: Whether to run the model on held-out questions for the sections on routing. The
            other sections need neither the base model nor the data.
        max_questions: Maximum number of questions of each task for routing; 0 for all.

    Returns:
        The sections of the report.

    Raises:
        UserError: The runs cannot be read (see `read_runs`); the runs do not fit the table (see
            `seed_groups`); or routing is measured, and the base model or the data have changed
            since a run was trained.
    """
    runs = read_runs(workdirs, weights, allow_unfinished)
    finished = [run for run in runs if run.is_finished]
    groups = seed_groups(finished, TABLES[table] if table else None) if finished else []
    output.mkdir(parents=True, exist_ok=True)
    names = ', '.join(run.name for run in runs) if len(runs) <= _MAX_NAMES else f'{len(runs)} runs'
    sections = [*_sections(runs, groups, output, table, max_questions if routing else None)]
    page.write(f'Analysis of {names}', sections, output)
    return sections


def _sections(
    runs: Sequence[LoadedRun],
    groups: Sequence[SeedGroup],
    output: pathlib.Path,
    table: str | None,
    max_questions: int | None,
) -> Iterator[Section]:
    with_checkpoint = [run for run in runs if run.report_step]
    routing_sections = (
        {run.name: routing_section(run, output, max_questions) for run in with_checkpoint}
        if max_questions is not None
        else {}
    )
    routing = {name: section.numbers for name, section in routing_sections.items()}
    yield summary_section(runs, groups, routing)
    if groups:
        yield scores_section(groups, TABLES[table] if table else None)
    yield tasks_section(runs, groups, output)
    yield from answers_section(groups)
    yield seesaw_section(groups, output)
    yield overview_section(runs, output)
    if with_checkpoint:
        adapters = read_adapter_weights(with_checkpoint)
        yield similarity_section(adapters, output)
        yield spectra_section(adapters, output)
        del adapters
        if max_questions is None:
            text = (
                'Skipped because of --norouting: neither the base model nor the held-out questions '
                'were loaded.'
            )
            yield Section('routing', 'Routing', [Text(text)])
        yield from routing_sections.values()
    without_checkpoint = [run.name for run in runs if not run.report_step]
    if without_checkpoint:
        names = ', '.join(without_checkpoint)
        text = f'These sections need checkpoints, which are missing from {names}.'
        yield Section('no_checkpoints', 'Weights and routing', [Text(text)])
    yield costs_section(runs)
