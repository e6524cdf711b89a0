"""Section on routing: the routers of one run on its held-out questions.

Dimension letters: J linear modules, L layers, G tasks, E experts, Q questions.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from malora_jax.analysis import routing, routing_plots
from malora_jax.analysis.example_tokens import word_tables
from malora_jax.analysis.page import Block, Fold, Picture, Section, Table, Text
from malora_jax.analysis.routed import Questions, Routed, questions, route
from malora_jax.analysis.router_state import (
    RouterState,
    choices,
    is_dense,
    mean_chance,
    state_of,
)
from malora_jax.analysis.weights import Adapter, linears, read_adapter, start_adapter
from malora_jax.runs import LoadedRun
from malora_jax.training.prepare import data_digests
from malora_jax.training.setup import Setup, build
from malora_jax.training.workdir import check_base, check_run

# Maximum number of evenly spread checkpoints that are run on the questions.
_MOST_STEPS = 4


def routing_section(run: LoadedRun, output: pathlib.Path, most: int) -> Section:
    """Return the section on expert load, load balance and task information of a run's routers.

    Runs the model on held-out questions at some of the run's checkpoints.

    Args:
        run: The run.
        output: Directory of the plots.
        most: Maximum number of held-out questions of each task; 0 for all.

    Raises:
        UserError: The base model or the data are missing, or differ from those of the run.
    """
    name = f'routing-{run.file_name}'
    title = f'Routing of {run.name}'
    if not run.settings.adapter.has_router:
        text = (
            f'{run.method} has one expert and no router: there is no routing to show. What '
            'its projections have to tell is above.'
        )
        return Section(name, title, [Text(text)], None)
    check_run(run.path, run.config, data_digests(run.settings))
    setup = build(run.settings)
    check_base(run.path, run.settings, setup.base.params)
    batches = list(setup.held_out_batches(most))
    asked = questions(batches)
    tasks, task_Q = np.unique(asked.task, return_inverse=True)
    states, routed = {}, None
    for step in _steps(run):
        adapter = _adapter(run, step)
        if adapter is not None:
            found = _route(setup, adapter, asked, f'{run.name}: step {step}')
            states[step] = state_of(run.settings.adapter, linears(run.settings), found, task_Q)
            routed = found if step == run.step else routed
    assert routed is not None
    names = [setup.splits[task].task_name for task in tasks]
    chance = mean_chance(run.settings.adapter, routed, task_Q)
    blocks: list[Block] = [
        Text(_about(run, asked, names)),
        _table(run, states, chance, len(names)),
        _evolution(run, states, chance, output),
        _routers(run, states[run.step], chance, output),
        *_loads(run, states[run.step], names, output),
    ]
    words = word_tables(run.settings, states[run.step], routed, asked, setup.base.tokenizer)
    if words:
        blocks.append(Fold('Example tokens of each expert', words))
    numbers = {
        'questions': len(asked.task),
        'tasks': names,
        'token_slots': {
            linear: choices(run.settings.adapter, sums).sum(axis=(0, 2)).tolist()
            for linear, sums in routed.questions.items()
        },
        'steps': {step: state.means() for step, state in states.items()},
        'chance_information': chance,
        'load': {
            linear: load.round(5).tolist()
            for linear, load in zip(linears(run.settings), states[run.step].load, strict=True)
        },
    }
    return Section(name, title, blocks, numbers)


def _steps(run: LoadedRun) -> list[int]:
    """Return step 0, the step to report on, and some evenly spread checkpoints' steps."""
    steps = sorted({*run.steps, run.step})
    if len(steps) > _MOST_STEPS:
        picked = np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int)
        steps = sorted({*(steps[i] for i in picked), run.step})
    return [0, *steps]


def _adapter(run: LoadedRun, step: int) -> Adapter | None:
    if step:
        return read_adapter(run.path, run.settings, step)
    return start_adapter(run.path, run.settings)


def _route(setup: Setup, adapter: Adapter, asked: Questions, description: str) -> Routed:
    variables = {'params': setup.base.params, **adapter}
    return route(setup.model, variables, asked, description)


def _about(run: LoadedRun, asked: Questions, names: Sequence[str]) -> str:
    adapter = run.settings.adapter
    if is_dense(run.settings.adapter):
        how = (
            f'All {adapter.num_experts} experts take part in every token: shares are those of '
            'their gates.'
        )
    else:
        how = (
            f'Each token goes to {adapter.router.top_k} of {adapter.num_experts} experts: shares '
            'are of these token slots.'
        )
    return (
        f'{len(asked.task)} held-out questions with their answers, of {len(names)} '
        f'task{"s" * (len(names) != 1)}, were put through the model. {how} Every linear of every '
        'layer has a router and experts of its own; expert 3 of one has nothing to do with expert '
        '3 of another.'
    )


def _table(run: LoadedRun, states: dict[int, RouterState], chance: float, num_tasks: int) -> Table:
    adapter = run.settings.adapter
    experts = adapter.num_experts
    slots = 1 if is_dense(run.settings.adapter) else adapter.router.top_k
    most = routing.most_information(num_tasks, experts, slots)
    rows = [
        [f'step {step}' if step else 'start', *(f'{value:.3f}' for value in state.means().values())]
        for step, state in states.items()
    ]
    rows.append(['if balanced', '1.000', f'{experts:.3f}', f'{1 / experts:.3f}', '0.000'])
    rows.append(['by chance', '', '', '', f'{chance:.3f}'])
    rows.append(
        ['at most', f'{experts / slots:.3f}', f'{experts:.3f}', f'{1 / slots:.3f}', f'{most:.3f}']
    )
    caption = (
        'Means over routers. Balance (the balance loss) is 1 where experts are used evenly, and '
        'more where not; effective experts are exp(entropy) of their shares; task information is '
        "how many bits a slot's expert tells of its task, beside what chance gives: tasks dealt "
        'to the questions at random'
    )
    head = ['', 'balance', 'effective experts', 'largest share', 'task inform\u00adation']
    return Table(caption, head, rows)


def _evolution(
    run: LoadedRun, states: dict[int, RouterState], chance: float, output: pathlib.Path
) -> Picture:
    experts = run.settings.adapter.num_experts
    lines = {
        'balance_loss': (1.0, 'balanced'),
        'effective_experts': (float(experts), 'balanced'),
        'max_expert_share': (1 / experts, 'balanced'),
        'task_information': (chance, 'chance'),
    }
    means = [state.means() for state in states.values()]
    held_out: dict[str, list[float]] = {key: [m[key] for m in means] for key in lines}
    held_out['step'] = list(states)
    path = output / f'{run.file_name}_routing.png'
    routing_plots.plot_evolution(path, run.records, held_out, lines)
    first, last = means[0], means[-1]
    caption = (
        'Routing over training, means over all routers: each step on its own batch (blue) and '
        'checkpoints on the held-out questions (orange), against dashed lines for balanced use or '
        f'chance. From {first["effective_experts"]:.2f} to {last["effective_experts"]:.2f} of '
        f'{experts} effective experts, from {first["task_information"]:.3f} to '
        f'{last["task_information"]:.3f} bits of task.'
    )
    return Picture(path, caption)


def _routers(run: LoadedRun, state: RouterState, chance: float, output: pathlib.Path) -> Picture:
    names, experts = linears(run.settings), run.settings.adapter.num_experts
    path = output / f'{run.file_name}_routers.png'
    routing_plots.plot_routers(path, state.information, state.effective, names, chance, experts)
    j, layer = np.unravel_index(state.information.argmax(), state.information.shape)
    k, low = np.unravel_index(state.effective.argmin(), state.effective.shape)
    caption = (
        'Each router, a row for each layer (the first at the top): left, what its experts tell of '
        'the task (the red mark is chance), right, how many experts are in use (the red mark is '
        f'balanced). {names[j]} of layer {layer} tells most about the task '
        f'({state.information[j, layer]:.2f} bits), and {names[k]} of layer {low} uses the fewest '
        f'experts ({state.effective[k, low]:.1f}).'
    )
    return Picture(path, caption)


def _loads(
    run: LoadedRun, state: RouterState, tasks: Sequence[str], output: pathlib.Path
) -> list[Block]:
    experts = run.settings.adapter.num_experts
    pictures = []
    for linear, load_LGE in zip(linears(run.settings), state.load, strict=True):
        path = output / f'{run.file_name}_load_{linear}.png'
        most = 1.0 if is_dense(run.settings.adapter) else 1 / run.settings.adapter.router.top_k
        routing_plots.plot_load(path, load_LGE, tasks, linear, most)
        layer, task, expert = np.unravel_index(load_LGE.argmax(), load_LGE.shape)
        caption = (
            f'Share that each expert of {linear} gets, a panel for each task, a row for each layer '
            f'(the first at the top); {1 / experts:.3g} is balanced, and panels that look alike '
            'mean routing that does not heed the task. The largest share is '
            f'{100 * load_LGE.max():.0f}%, of expert {expert} in layer {layer} for {tasks[task]}.'
        )
        pictures.append(Picture(path, caption))
    if len(pictures) == 1:
        return [*pictures]
    names = ', '.join(linears(run.settings)[1:])
    return [pictures[0], Fold(f'Expert load by task and layer: {names}', pictures[1:])]
