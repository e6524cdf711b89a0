"""Tables of the documentation about the use of trained models, from stored results and plans."""

from collections.abc import Callable

from configs import intra_domain
from docs.records import load
from malora_jax import markdown
from malora_jax.training import run_config
from malora_jax.training.memory_estimate import (
    format_estimates,
    memory_estimates,
    parse_memory_size,
)


def static_export() -> str:
    """Return the table of held-out losses of a mixture and of its static approximations."""
    models = {
        'base': 'base',
        'mixture': '`malora`',
        'static': 'static',
        'static_of_chain_sum': 'static, `--task=chain_sum`',
    }
    rows = [['held-out loss (nats per token)', *models.values()]]
    for task, losses in load('static_export')['values']['losses'].items():
        rows.append([task, *(f'{losses[model]:.4f}' for model in models)])
    return markdown.table(rows)


def starts_from_lora() -> str:
    """Return the table of losses and similarities of mixtures that start from a LoRA."""
    measured = load('start_from_lora')['values']
    rows = {
        'loss before the first step': 'losses_before',
        'similarity before the first step': 'similarity_before',
        'similarity after 5 steps': 'similarity_after_5_steps',
    }
    models = measured['losses_before']
    table = [['', *(name if name == 'base' else f'`{name}`' for name in models)]]
    for label, key in rows.items():
        found = measured[key]
        table.append([label, *(f'{found[name]:.4f}' if name in found else '' for name in models)])
    return markdown.table(table)


def quantized_quickstart() -> str:
    """Return the table of a short quickstart with quantized base models."""
    measured = load('quantized_quickstart')['values']
    head = ['base model', 'size, MB', 'loss before', 'loss after']
    rows = [[*head, f'exact match after, % of {measured["questions"]}']]
    for name, found in measured['formats'].items():
        cells = [f'`{name}`', f'{found["base_mb"]:,}', f'{found["loss_before"]:.3f}']
        if found['loss_after'] is None:
            cells += ['', '']
        else:
            cells += [f'{found["loss_after"]:.3f}', f'{100 * found["exact_match"]:.1f}']
        rows.append(cells)
    return markdown.table(rows)


def kills_by_activity() -> str:
    """Return the table of where the time of a run went that was killed again and again."""
    measured = load('kills')['values']
    rows = [['activity', 'seconds', 'share']]
    for name, seconds in measured['seconds'].items():
        rows.append([name, f'{seconds:.1f}', f'{seconds / measured["total_s"]:.0%}'])
    return markdown.table(rows)


def plan_advice() -> str:
    """Return the last line of `experiments.plan --memory=24GB` for Llama 3.1 8B with MALoRA."""
    config = intra_domain.get_config('malora')
    config.model.name = 'llama3.1-8b'
    run, memory = run_config(config.to_dict()), parse_memory_size('24GB')
    advice = format_estimates(run, memory_estimates(run, memory), memory).splitlines()[-1]
    return f'```text\n{advice}\n```'


PARTS: dict[str, Callable[[], str]] = {
    'static export': static_export,
    'starts from lora': starts_from_lora,
    'quantized quickstart': quantized_quickstart,
    'kills by activity': kills_by_activity,
    'plan advice llama3.1-8b': plan_advice,
}
