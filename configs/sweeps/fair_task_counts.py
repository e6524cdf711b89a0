r"""Study B of the fair comparison: LoRA, MoLoRA and MALoRA on 1, 2, 4, 8 and 12 tasks.

Command:
    python -m experiments.sweep --config=configs/sweeps/fair_task_counts.py \
      --workdir=runs/fair_task_counts --records=docs/results/fair_task_counts --jobs=2

Each task has the tokens of 40 steps, whatever the number of tasks. All twelve tasks are also
trained on alone, with one seed, which shows the tasks that gain and lose.

Hardware: 36 runs of several tasks and 36 of one task, on two CPU cores about 10 hours.
"""

from ml_collections import ConfigDict

METHODS = ('lora', 'molora', 'malora')
# The first N tasks make a mixture of N tasks. Its diversity grows: arithmetic, words, retrieval,
# then decimals, relations, letters, algebra, and so on.
TASKS = (
    'chain_sum',
    'word_sequence_reversal',
    'needle_haystack',
    'number_filtering',
    'decimal_chain_sum',
    'family_relationships',
    'spell_backward',
    'simple_equations',
    'letter_counting',
    'gcd',
    'leg_counting',
    'calendar_arithmetic',
)
COUNTS = (2, 4, 8, 12)
STEPS_PER_TASK = 40


def get_config() -> ConfigDict:
    """Return the config of the sweep."""
    config = ConfigDict()
    config.base = 'configs/fair_comparison.py'
    config.seeds = (0, 1, 2)
    config.runs = {
        f'{method}-{count}': {'arg': method, 'overrides': _overrides(TASKS[:count])}
        for count in COUNTS
        for method in METHODS
    } | {
        f'{method}-{task}': {'arg': method, 'overrides': _overrides((task,)), 'seeds': (0,)}
        for task in TASKS
        for method in METHODS
    }
    return config


def _overrides(tasks: tuple[str, ...]) -> dict[str, dict[str, object]]:
    steps = STEPS_PER_TASK * len(tasks)
    evaluations = {'evaluate_every': steps // 2, 'checkpoint_every': steps // 2}
    return {'data': {'tasks': tasks}, 'training': {'steps': steps, **evaluations}}
