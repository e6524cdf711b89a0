"""Plots contain the given data: checked in the figure, then in the file."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from malora_jax.analysis import figures, routing_plots, task_plots
from malora_jax.analysis import training_plots as plots


@pytest.fixture
def saved(monkeypatch):
    """Figures that were saved, in order."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, 'savefig', keep)
    return figures


def test_losses_of_each_task_where_the_batch_had_the_task(tmp_path, saved):
    records = [
        {'step': 1, 'loss/a': 4.0, 'loss/b': 1.0},
        {'step': 2, 'loss/a': 2.0},
        {'step': 3, 'loss/a': 3.0, 'loss/b': 5.0},
    ]
    plots.plot_losses(tmp_path / 'loss.png', records, 'title')
    axes = saved[0].axes[0]
    raw_a, smooth_a, raw_b, _ = axes.lines
    np.testing.assert_array_equal(raw_a.get_xydata(), [[1, 4], [2, 2], [3, 3]])
    np.testing.assert_array_equal(raw_b.get_xydata(), [[1, 1], [3, 5]])
    np.testing.assert_allclose(smooth_a.get_ydata(), [3, 3, 2.5])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['a', 'b']
    assert imread(tmp_path / 'loss.png').std() > 0


def test_validation_losses_are_dashed_in_the_colour_of_their_task(tmp_path, saved):
    records = [
        {'step': 1, 'loss/a': 4.0, 'loss/b': 2.0},
        {'step': 2, 'loss/b': 1.0, **dict.fromkeys(['validation_loss', 'validation_loss/a'], 3.0)},
        {'step': 3, 'loss/b': 1.0, 'validation_loss': 2.0, 'validation_loss/a': 2.5},
    ]
    records[1]['validation_loss/b'] = 3.5
    records[2]['validation_loss/b'] = 1.5
    plots.plot_losses(tmp_path / 'loss.png', records, 'title')
    axes = saved[0].axes[0]
    raw_a, _, dashed_a, raw_b, _, dashed_b = axes.lines
    np.testing.assert_array_equal(dashed_a.get_xydata(), [[2, 3], [3, 2.5]])
    np.testing.assert_array_equal(dashed_b.get_xydata(), [[2, 3.5], [3, 1.5]])
    assert dashed_a.get_linestyle() == '--'
    assert dashed_a.get_color() == raw_a.get_color() != raw_b.get_color() == dashed_b.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['a', 'b']


def test_names_are_shown_as_they_are(tmp_path, saved):
    """matplotlib would read the name as a broken formula, and the run would end without results."""
    records = [{'step': 1, 'loss/us$_^^$': 4.0}]
    plots.plot_losses(tmp_path / 'loss.png', records, 'us$_^^$')
    scores = {'us$_^^$': scores_of(0.0, 0.25, 0.75)}
    plots.plot_scores(tmp_path / 'scores.png', scores, 'us$_^^$')
    load = {'q': np.ones((1, 1, 2))}
    plots.plot_expert_load(tmp_path / 'load.png', load, ['us$_^^$'], 'us$_^^$')
    task_plots.plot_curves(tmp_path / 'curves.png', {'us$_^^$': ([1], [2.0])}, 'loss')
    assert len(saved) == 4


def test_expert_load_has_a_panel_for_each_linear_and_task(tmp_path, saved):
    loads = {
        name: np.random.default_rng(seed).dirichlet(np.ones(4), size=(3, 2))
        for seed, name in enumerate(('q', 'down'))
    }
    plots.plot_expert_load(tmp_path / 'load.png', loads, ['a', 'b'], 'title')
    panels = saved[0].axes[:4]
    for panel, linear, task in zip(panels, ['q', 'q', 'down', 'down'], [0, 1, 0, 1], strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), loads[linear][:, task])
    assert imread(tmp_path / 'load.png').std() > 0


def scores_of(before: float, constant: float, after: float) -> dict:
    """Return a task of results.json; each interval is 0.1 below and 0.2 above the score."""
    return {
        **{'before': before, 'before_interval': [before - 0.1, before + 0.2]},
        **{'after': after, 'after_interval': [after - 0.1, after + 0.2]},
        'best_constant': constant,
    }


def test_scores_show_before_constant_and_after(tmp_path, saved):
    tasks = {'a': scores_of(0.0, 0.25, 0.75), 'b': scores_of(0.125, 0.5, 1.0)}
    plots.plot_scores(tmp_path / 'scores.png', tasks, 'title')
    axes = saved[0].axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]
    # The lines of the intervals, before and after training.
    ends = [segment[:, 1] for lines in axes.collections for segment in lines.get_segments()]
    np.testing.assert_allclose(ends, [[-0.1, 0.2], [0.025, 0.325], [0.65, 0.95], [0.9, 1.2]])


@pytest.mark.parametrize('suffix', ['.png', '.svg'])
def test_the_same_plot_is_the_same_file(tmp_path, suffix):
    contents = []
    for number in range(2):
        path = tmp_path / f'{number}{suffix}'
        task_plots.plot_curves(path, {'run': ([1, 2], [2.0, 1.0])}, 'loss', 'tiny, seed 0')
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert matplotlib.__version__.encode() not in contents[0] and b'dc:date' not in contents[0]
    if suffix == '.svg':
        assert b'tiny, seed 0</text>' in contents[0]


def test_conditions_stand_above_the_plot(tmp_path, saved):
    task_plots.plot_curves(
        tmp_path / 'a.png', {'run': ([1], [2.0])}, 'loss', 'tiny, ' + 'seed 0 ' * 20
    )
    lines = saved[0].get_suptitle().split('\n')
    assert lines[0].startswith('tiny, seed 0') and len(lines) > 1


def test_statistics_without_a_reference_have_no_line(tmp_path, saved):
    names = ('balance_loss', 'effective_experts', 'max_expert_share', 'task_information')
    records = [{'step': step, 'balance_loss': 0.5 * step} for step in (1, 2)]
    held_out = {'step': [2], **{name: [1.0] for name in names}}
    lines = {**dict.fromkeys(names, (0.7, 'even')), 'balance_loss': None}
    routing_plots.plot_evolution(tmp_path / 'a.png', records, held_out, lines, 'tiny')
    first, second, *_ = saved[0].axes
    assert (len(first.lines), first.get_title()) == (2, 'balance')
    assert second.get_title() == 'effective experts\n(dashed: even, 0.7)'
    assert len(second.lines) == 2 and second.lines[1].get_linestyle() == '--'


def test_only_truncated_axes_are_marked(tmp_path):
    for bottom, marks in ((0.0, 0), (-1.0, 0), (0.5, 1)):
        axes = Figure().add_subplot()
        axes.set_ylim(bottom, 2.0)
        figures.mark_truncated(axes)
        assert [text.get_text() for text in axes.texts] == ['≈ not from 0'] * marks
