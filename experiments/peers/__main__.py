"""Time our training step against HF PEFT's and MoE-PEFT's, interleaved on the same examples.

Prints tables in Markdown. Before timing, losses and gradients are compared for the pairs that
implement the same method; experiments/peers/README.md lists these pairs, and the packages to
install. All systems use as many threads as the process may use cores; `taskset` limits them.

Pairs of systems:
    lora     our LoRA, HF PEFT's LoRA
    dora     our DoRA, HF PEFT's DoRA
    molora   our MoLoRA with gates that sum to one, MoE-PEFT's MoLA
    malora   our MALoRA, MoE-PEFT's MoLA
    trainer  our MALoRA, MoE-PEFT's MoLA with the rematerialization of its own trainer
    mixlora  our MALoRA, MoE-PEFT's MixLoRA

Examples:
    python -m experiments.peers --config=configs/quickstart.py --output=runs/peers.json
    python -m experiments.peers --config=configs/quickstart.py --pairs=lora --rows=real
"""

import pathlib
from typing import Any

from absl import flags

from experiments import cli
from experiments.peers.benchmark import BATCH_KINDS, benchmark
from experiments.peers.report import tables
from experiments.peers.systems import PAIRS
from malora_jax import errors, files

_PAIRS = flags.DEFINE_list(
    'pairs',
    [*PAIRS],
    'Names of the pairs of systems to compare: one of our methods, and one of HF PEFT or MoE-PEFT.',
)
_ROWS = flags.DEFINE_list(
    'rows',
    [*BATCH_KINDS],
    'Kinds of batches to measure on: synthetic = full rows of random tokens; '
    "real = the config's training data.",
)
_TURNS = flags.DEFINE_integer(
    'turns', 5, 'Number of rounds, in each of which every system is timed once.', lower_bound=1
)
_STEPS = flags.DEFINE_integer(
    'steps',
    4,
    'Number of timed training steps per system and round, after an untimed warm-up step.',
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write all measurements into.')


def main(config: dict[str, Any]) -> None:
    """Run the benchmark, print its tables, and write the JSON file if --output is given."""
    _check(_PAIRS, PAIRS)
    _check(_ROWS, BATCH_KINDS)
    report = benchmark(config, _PAIRS.value, _ROWS.value, _TURNS.value, _STEPS.value)
    print(tables(report))
    if _OUTPUT.value is not None:
        path = pathlib.Path(_OUTPUT.value).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, report)


def _check(flag: flags.FlagHolder, known: Any) -> None:
    for name in flag.value:
        if name not in known:
            raise errors.unknown_name(f'item of --{flag.name}', name, known)
    if not flag.value:
        raise errors.UserError(f'--{flag.name} is empty; it must name some of {", ".join(known)}.')


if __name__ == '__main__':
    cli.run(main)
