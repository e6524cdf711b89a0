"""Section on routing: the routers of one run on its held-out questions.

Dimension letters: J linear modules, L layers, G tasks, E experts, Q questions, P random assignments
of tasks to questions.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from malora_jax.analysis import routing, routing_plots
from malora_jax.analysis.adapter_weights import (
    AdapterVariables,
    adapted_linears,
    initial_adapter,
    read_adapter,
)
from malora_jax.analysis.conditions import count, model_and_seeds
from malora_jax.analysis.example_tokens import token_tables
from malora_jax.analysis.held_out_routing import (
    HeldOutQuestions,
    HeldOutRouting,
    index_questions,
    sum_routing,
)
from malora_jax.analysis.page import Fold, Picture, ReportBlock, Section, Table, Text
from malora_jax.analysis.router_stats import (
    RouterStats,
    compute_router_stats,
    idle_experts,
    is_dense,
    mean_chance_information,
    slot_counts,
)
from malora_jax.runs import LoadedRun
from malora_jax.training.prepare import data_digests
from malora_jax.training.setup import Setup, build_setup
from malora_jax.training.workdir import check_base, check_run

# Maximum number of evenly spread checkpoints that are run on the questions.
_MAX_CHECKPOINTS = 4


def routing_section(run: LoadedRun, output: pathlib.Path, max_questions: int) -> Section:
    """Return the section on expert load, load balance and task information of a run's routers.

    Runs the model on held-out questions at some of the run's checkpoints.

    Args:
        run: The run.
        output: Directory of the plots.
        max_questions: Maximum number of held-out questions of each task; 0 for all.

    Raises:
        UserError: The base model or the data are missing, or differ from those of the run.
    """
    name = f'routing-{run.file_name}'
    title = f'Routing of {run.name}'
    if not run.run_config.adapter.has_router:
        experts = '' if run.run_config.adapter.tasks else 'one expert and '
        text = (
            f'{run.method} has {experts}no router: there is no routing to show. For its '
            'projections, see the sections above.'
        )
        return Section(name, title, [Text(text)], None)
    check_run(run.path, run.raw_config, data_digests(run.run_config))
    setup = build_setup(run.run_config)
    check_base(run.path, run.run_config, setup.base.params)
    batches = list(setup.held_out_batches(max_questions))
    question_set = index_questions(batches)
    tasks, task_Q = np.unique(question_set.task, return_inverse=True)
    stats_by_step, held_out = {}, None
    for step in _steps(run):
        adapter = _adapter(run, step)
        if adapter is not None:
            step_routing = _route(setup, adapter, question_set, f'{run.name}: step {step}')
            stats_by_step[step] = compute_router_stats(
                run.run_config.adapter, adapted_linears(run.run_config), step_routing, task_Q
            )
            held_out = step_routing if step == run.report_step else held_out
    assert held_out is not None
    names = [setup.splits[task].task_name for task in tasks]
    chance_P = mean_chance_information(run.run_config.adapter, held_out, task_Q)
    chance = float(chance_P.mean())
    stats, max_information = stats_by_step[run.report_step], _max_information(run, len(names))
    conditions = (
        f'{run.method} on {model_and_seeds([run])}, '
        f'{len(question_set.task)} held-out questions in {count(len(names), "task")}'
    )
    blocks: list[ReportBlock] = [
        Text(_introduction(run, question_set, names)),
        _table(run, stats_by_step, chance, max_information),
        _plot_evolution(run, stats_by_step, chance, output, conditions),
        _plot_routers(run, stats, chance, output, conditions),
        *_plot_loads(run, stats, names, output, conditions),
    ]
    token_blocks = token_tables(run.run_config, stats, held_out, question_set, setup.base.tokenizer)
    if token_blocks:
        blocks.append(Fold('Example tokens of each expert', token_blocks))
    numbers = {
        'questions': len(question_set.task),
        'tasks': names,
        'token_slots': {
            linear: slot_counts(run.run_config.adapter, sums).sum(axis=(0, 2)).tolist()
            for linear, sums in held_out.by_question.items()
        },
        'steps': {step: state.means() for step, state in stats_by_step.items()},
        'chance_information': chance,
        'max_chance_information': float(chance_P.max()),
        'max_information': max_information,
        'experts': run.run_config.adapter.num_experts,
        'min_effective_experts': _slots(run),
        'idle_experts': dict(
            zip(adapted_linears(run.run_config), idle_experts(stats).tolist(), strict=True)
        ),
        'load': {
            linear: load.round(5).tolist()
            for linear, load in zip(adapted_linears(run.run_config), stats.load, strict=True)
        },
    }
    return Section(name, title, blocks, numbers)


def _steps(run: LoadedRun) -> list[int]:
    """Return the steps at which routing is measured.

    These are step 0, the steps of some evenly spread checkpoints, and `run.report_step`.
    """
    steps = sorted({*run.checkpoint_steps, run.report_step})
    if len(steps) > _MAX_CHECKPOINTS:
        picked = np.linspace(0, len(steps) - 1, _MAX_CHECKPOINTS).round().astype(int)
        steps = sorted({*(steps[i] for i in picked), run.report_step})
    return [0, *steps]


def _adapter(run: LoadedRun, step: int) -> AdapterVariables | None:
    if step:
        return read_adapter(run.path, run.run_config, step)
    return initial_adapter(run.path, run.run_config)


def _route(
    setup: Setup, adapter: AdapterVariables, question_set: HeldOutQuestions, description: str
) -> HeldOutRouting:
    variables = {'params': setup.base.params, **adapter}
    return sum_routing(setup.model, variables, question_set, description)


def _introduction(run: LoadedRun, question_set: HeldOutQuestions, names: Sequence[str]) -> str:
    adapter = run.run_config.adapter
    if is_dense(run.run_config.adapter):
        how = (
            f'All {adapter.num_experts} experts are active for every token, so an expert has a '
            'share of the gates.'
        )
    elif adapter.router.scores == 'threshold':
        how = (
            f'Each token is routed to those of {adapter.num_experts} experts that are above its '
            'threshold, so an expert has a share of these token slots.'
        )
    else:
        how = (
            f'Each token is routed to {adapter.router.top_k} of {adapter.num_experts} experts, so '
            'an expert has a share of these token slots.'
        )
    return (
        f'The model was run on {len(question_set.task)} held-out questions with their answers, '
        f'from {len(names)} task{"s" * (len(names) != 1)}. {how} Each linear of each layer has its '
        'own router and experts; expert 3 of one linear is unrelated to expert 3 of another.'
    )


def _slots(run: LoadedRun) -> int:
    """Return the smallest number of token slots per token; 1 if shares are those of the gates."""
    adapter = run.run_config.adapter
    return 1 if is_dense(adapter) else adapter.router.min_experts


def _has_balance_scale(run: LoadedRun) -> bool:
    """Return whether the load-balancing loss is 1 if experts are used evenly."""
    return run.run_config.adapter.router.balance_scores == 'probability'


def _max_information(run: LoadedRun, num_tasks: int) -> float:
    experts = run.run_config.adapter.num_experts
    return routing.max_information(num_tasks, experts, _slots(run))


def _table(
    run: LoadedRun,
    stats_by_step: dict[int, RouterStats],
    chance: float,
    max_information: float,
) -> Table:
    experts, slots = run.run_config.adapter.num_experts, _slots(run)
    rows = [
        [f'step {step}' if step else 'start', *(f'{value:.3f}' for value in state.means().values())]
        for step, state in stats_by_step.items()
    ]
    has_scale = _has_balance_scale(run)
    balanced = '1.000' if has_scale else ''
    rows.append(['if balanced', balanced, f'{experts:.3f}', f'{1 / experts:.3f}', '0.000', ''])
    rows.append(['by chance', '', '', '', f'{chance:.3f}', ''])
    rows.append(
        [
            'at most',
            f'{experts / slots:.3f}' if has_scale else '',
            f'{experts:.3f}',
            f'{1 / slots:.3f}',
            f'{max_information:.3f}',
            '',
        ]
    )
    scale = (
        'is 1 if experts are used evenly, and larger otherwise'
        if has_scale
        else 'is that of distances from the threshold, which has no fixed value for even use'
    )
    caption = (
        f'Means over routers. Balance (the load-balancing loss) {scale}. '
        'Effective experts are exp(entropy) of the shares. Task information '
        'is the number of bits that the expert of a token slot reveals about its task; "by chance" '
        'is its value with tasks assigned to the questions at random. The sum of the gates of a '
        'token scales the update of its experts'
    )
    head = [
        '',
        'balance',
        'effective experts',
        'largest share',
        'task inform\u00adation',
        'sum of gates',
    ]
    return Table(caption, head, rows)


def _plot_evolution(
    run: LoadedRun,
    stats_by_step: dict[int, RouterStats],
    chance: float,
    output: pathlib.Path,
    conditions: str,
) -> Picture:
    experts = run.run_config.adapter.num_experts
    lines = {
        'balance_loss': (1.0, 'balanced') if _has_balance_scale(run) else None,
        'effective_experts': (float(experts), 'balanced'),
        'max_expert_share': (1 / experts, 'balanced'),
        'task_information': (chance, 'chance'),
    }
    means = [state.means() for state in stats_by_step.values()]
    held_out: dict[str, list[float]] = {key: [m[key] for m in means] for key in lines}
    held_out['step'] = list(stats_by_step)
    path = output / f'{run.file_name}_routing.png'
    routing_plots.plot_evolution(path, run.records, held_out, lines, conditions)
    first, last = means[0], means[-1]
    caption = (
        'Routing over training, means over all routers: each step on its own batch (blue) and '
        'checkpoints on the held-out questions (orange). Dashed lines show balanced use or chance. '
        f'On the held-out questions, {first["effective_experts"]:.2f} effective experts of '
        f'{experts} become {last["effective_experts"]:.2f}, and task information changes from '
        f'{first["task_information"]:.3f} to {last["task_information"]:.3f} bits.'
    )
    return Picture(path, caption)


def _plot_routers(
    run: LoadedRun,
    stats: RouterStats,
    chance: float,
    output: pathlib.Path,
    conditions: str,
) -> Picture:
    names, experts = adapted_linears(run.run_config), run.run_config.adapter.num_experts
    path = output / f'{run.file_name}_routers.png'
    routing_plots.plot_routers(
        path,
        stats.task_information,
        stats.effective_experts,
        names,
        chance,
        experts,
        conditions,
    )
    j, layer = np.unravel_index(stats.task_information.argmax(), stats.task_information.shape)
    k, low = np.unravel_index(stats.effective_experts.argmin(), stats.effective_experts.shape)
    caption = (
        'Each router, with a row for each layer (the first at the top). Left: task information of '
        'its experts (the red mark is chance). Right: effective number of experts (the red mark is '
        f'balanced use). Task information is highest in {names[j]} of layer {layer} '
        f'({stats.task_information[j, layer]:.2f} bits), and {names[k]} of layer {low} uses the '
        f'fewest experts ({stats.effective_experts[k, low]:.1f}).'
    )
    return Picture(path, caption)


def _plot_loads(
    run: LoadedRun,
    stats: RouterStats,
    tasks: Sequence[str],
    output: pathlib.Path,
    conditions: str,
) -> list[ReportBlock]:
    experts = run.run_config.adapter.num_experts
    pictures = []
    for linear, load_LGE in zip(adapted_linears(run.run_config), stats.load, strict=True):
        path = output / f'{run.file_name}_load_{linear}.png'
        max_share = 1 / _slots(run)
        routing_plots.plot_load(path, load_LGE, tasks, linear, max_share, conditions)
        layer, task, expert = np.unravel_index(load_LGE.argmax(), load_LGE.shape)
        caption = (
            f'Share of each expert of {linear}, with a panel for each task and a row for each '
            f'layer (the first at the top). {1 / experts:.3g} is balanced; similar panels mean '
            'that routing does not depend on the task. The largest share is '
            f'{100 * load_LGE.max():.0f}%, of expert {expert} in layer {layer} for {tasks[task]}.'
        )
        pictures.append(Picture(path, caption))
    if len(pictures) == 1:
        return [*pictures]
    names = ', '.join(adapted_linears(run.run_config)[1:])
    return [pictures[0], Fold(f'Expert load by task and layer: {names}', pictures[1:])]
