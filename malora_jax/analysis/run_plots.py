"""Plots that training writes into the directory of a run."""

import pathlib

from malora_jax.training.results import PlotData


def write_run_plots(workdir: pathlib.Path, data: PlotData) -> None:
    """Write `loss.png`, `scores.png` and, for runs with routers, `expert_load.png`.

    Args:
        workdir: Directory of the run.
        data: Data to plot.
    """
    # Imported here so that the start of training does not wait for matplotlib.
    from malora_jax.analysis import training_plots

    path, title = workdir, data.title
    questions = f'{sum(task["examples"] for task in data.tasks.values()):,} held-out questions'
    training_plots.plot_losses(path / 'loss.png', data.records, f'{title}: loss by task')
    training_plots.plot_scores(
        path / 'scores.png', data.tasks, f'{title}\n{questions}, 95% intervals'
    )
    if data.load:
        training_plots.plot_expert_load(
            path / 'expert_load.png',
            data.load,
            list(data.tasks),
            f'{title}\nexpert load on {questions}',
        )
