"""A report about runs: one HTML file, the plots in it, and its numbers."""

import pathlib
from collections.abc import Iterator, Sequence

from malora_jax import files
from malora_jax.analysis.report.costs import costs_section, overview_section
from malora_jax.analysis.report.experts import read_weights, similarity_section, spectra_section
from malora_jax.analysis.report.page import Section, Text, render
from malora_jax.analysis.report.routing import routing_section
from malora_jax.analysis.report.runs import Subject, read_subjects
from malora_jax.analysis.report.tasks import seesaw_section, tasks_section


def write_report(
    workdirs: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    weights: str | None = None,
    unfinished: bool = False,
    routing: bool = True,
    questions: int = 32,
) -> pathlib.Path:
    """Writes `report.html`, the PNGs in it, and `analysis.json` with its numbers.

    Args:
        workdirs: directories of runs on one base.
        output: where the files go.
        weights: where the base's weights are, if not where they were in training.
        unfinished: whether a run may have no results yet.
        routing: whether the model is run on held-out questions to see its routing; all else needs
            neither base nor data.
        questions: at most so many of each task are put for that, evenly spread; 0 = all.

    Returns:
        The path of the page.

    Raises:
        UserError: as `read_subjects`; or for the routing, base or data are not those of a run.
    """
    subjects = read_subjects(workdirs, weights, unfinished)
    output.mkdir(parents=True, exist_ok=True)
    sections = list(_sections(subjects, output, routing, questions))
    names = ', '.join(subject.name for subject in subjects)
    path = output / 'report.html'
    files.write_text(path, render(f'Analysis of {names}', sections))
    numbers = {section.name: section.numbers for section in sections}
    files.write_json(output / 'analysis.json', numbers)
    return path


def _sections(
    subjects: Sequence[Subject], output: pathlib.Path, routing: bool, questions: int
) -> Iterator[Section]:
    yield overview_section(subjects)
    adapters = read_weights(subjects)
    yield similarity_section(adapters, output)
    yield spectra_section(adapters, output)
    del adapters
    if routing:
        for subject in subjects:
            yield routing_section(subject, output, questions)
    else:
        text = 'Left out by --norouting: neither the base nor the held-out questions were read.'
        yield Section('routing', 'Routing', [Text(text)], None)
    yield tasks_section(subjects, output)
    yield seesaw_section(subjects, output)
    yield costs_section(subjects)
