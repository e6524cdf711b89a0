"""Measures the training step of several methods side by side, in one process.

Prints a table; with --output it writes FILE as JSON, and beside it the table and a bar chart.
'base' is the frozen model alone: its forward pass and the gradient with respect to its embedding.

Example:
    python -m experiments.benchmark --config=configs/quickstart.py \
      --methods=base,lora,dora,molora,malora --output=runs/benchmark/synthetic.json
"""

import pathlib
from typing import Any

from absl import flags

from experiments import cli
from malora_jax import files
from malora_jax.benchmark import report
from malora_jax.benchmark.run import benchmark

_METHODS = flags.DEFINE_list(
    'methods', ['base', 'lora', 'molora', 'malora'], 'Names of methods, and base.'
)
_ROWS = flags.DEFINE_enum(
    'rows', 'synthetic', ['synthetic', 'packed'], "Full rows of random tokens, or the config's own."
)
_MODEL = flags.DEFINE_string('model', None, 'A preset, instead of config.model.name.')
_TOKENS = flags.DEFINE_integer(
    'tokens', None, 'Positions of a step, instead of config.data.batch_size rows.', lower_bound=1
)
_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Steps of each method, at least.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')


def main(config: dict[str, Any]) -> None:
    """Measures, prints and writes."""
    if _MODEL.value is not None:
        config['model']['name'] = _MODEL.value
    if _TOKENS.value is not None:
        data, accumulate = config['data'], config['training']['accumulate']
        data['sequence_length'] = min(data['sequence_length'], _TOKENS.value)
        data['batch_size'] = max(1, _TOKENS.value // data['sequence_length'] // accumulate)
    found = benchmark(config, _METHODS.value, _ROUNDS.value, _ROWS.value == 'packed')
    machine = found['machine']
    title = f'{found["model"]}, {found["dtype"]}, {found["tokens_per_step"]:,.0f} tokens a step'
    table = report.format_table(found['methods'])
    print(f'{title}, {found["rows"]} rows, dropout {found["dropout"]}')
    print(f'{machine["device"]}, {machine["processor"]}, {machine["cores"]} cores\n\n{table}')
    if _OUTPUT.value is not None:
        output = pathlib.Path(_OUTPUT.value).expanduser()
        output.parent.mkdir(parents=True, exist_ok=True)
        report.plot(output.with_suffix('.png'), found['methods'], title)
        with files.replacing(output.with_suffix('.md')) as temporary:
            temporary.write_text(table + '\n', 'utf-8')
        files.write_json(output, found)


if __name__ == '__main__':
    cli.run(main)
