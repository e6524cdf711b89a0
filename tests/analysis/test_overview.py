"""The overview of runs: summary numbers, and loss curves."""

import pathlib

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import intra_domain_small
from malora_jax.analysis.sections.overview import overview_section
from malora_jax.runs import read_runs
from tests.helpers.finished_runs import write_finished_run


def write_runs(directory: pathlib.Path, losses: list[float], **changes) -> None:
    """Write finished runs named run0, run1, … with the given losses after training."""
    for number, loss in enumerate(losses):
        config = intra_domain_small.get_config('lora')
        write_finished_run(directory / f'run{number}', config, 20, loss=loss, **changes)


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved, collected instead of written."""
    found = []

    def keep(figure, path, **_):
        found.append(figure)
        pathlib.Path(path).write_bytes(b'png')

    monkeypatch.setattr(Figure, 'savefig', keep)
    return found


def test_the_numbers_of_a_run(tmp_path, figures):
    write_runs(tmp_path, [1.0, 2.0])
    section = overview_section(read_runs([tmp_path]), tmp_path)
    found = section.numbers['run1']
    assert found['method'] == 'lora' and found['trained'] == 1234567
    # The tasks have losses of 2 to 6 after training, and of 4 before.
    assert (found['loss_before'], found['loss_after']) == (4.0, pytest.approx(4.0))
    assert (found['before'], found['after']) == (25.0, 50.0)
    assert found['seconds_per_step'] == pytest.approx(1 / 3)
    table = section.blocks[0]
    assert table.head == ['', 'run0', 'run1']
    assert ['held-out loss after', '3.000', '4.000'] in table.rows


def test_of_many_runs_the_best_is_the_first_row(tmp_path, figures):
    write_runs(tmp_path, [3.0, 2.0, 5.0, 1.0, 4.0])
    table = overview_section(read_runs([tmp_path]), tmp_path).blocks[0]
    assert [row[0] for row in table.rows] == ['run3', 'run1', 'run0', 'run4', 'run2']
    column = table.head.index('held-out loss after')
    assert [row[column] for row in table.rows] == ['3.000', '4.000', '5.000', '6.000', '7.000']


def test_a_run_has_a_panel_with_its_own_curve_on_the_others(tmp_path, figures):
    for number in range(4):
        validation = {2: number + 1.5, 3: number + 1.25}
        config = intra_domain_small.get_config('lora')
        write_finished_run(tmp_path / f'run{number}', config, 20, validation=validation)
    section = overview_section(read_runs([tmp_path]), tmp_path)
    assert section.blocks[1].caption.endswith(
        'The last loss is lowest in run0 (1.250) and highest in run3 (4.250).'
    )
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ['run0', 'run1', 'run2', 'run3', '', '']
    assert [panel.axison for panel in panels] == [True] * 4 + [False] * 2
    np.testing.assert_allclose(panels[2].lines[-1].get_xydata(), [[2, 3.5], [3, 3.25]])
    assert len(panels[2].lines) == 5
    assert figures[0].get_supylabel() == 'validation loss (nats per token)'
    assert figures[0].get_suptitle() == 'smollm2-135m, seed 0'
    assert {panel.get_ylim()[0] for panel in panels[:4]} == {0.0}


def test_where_one_run_was_not_validated_the_training_losses_are_shown(tmp_path, figures):
    write_runs(tmp_path, [1.0])
    config = intra_domain_small.get_config('lora')
    write_finished_run(tmp_path / 'run1', config, 20, loss=1.0, validation={3: 2.0})
    overview_section(read_runs([tmp_path]), tmp_path)
    assert figures[0].get_supylabel() == 'loss (nats per token)'
    for panel in figures[0].axes[:2]:
        np.testing.assert_allclose(panel.lines[-1].get_xydata(), [[1, 2], [2, 1.5], [3, 4 / 3]])
