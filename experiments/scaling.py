"""Print the memory and communication of a training step on TPU slices, compiled without a TPU.

Needs pip install 'malora_jax[tpu-plan]'. Each program takes a minute or two to compile; programs
that are already in the output file are skipped.

Example:
    python -m experiments.scaling \
      --config=configs/intra_domain.py:malora --config.model.dtype=bfloat16 \
      --models=llama2-7b,llama3.1-8b --topologies=v5e:2x2,v5e:4x4,v5e:8x8 --output=scaling.json
"""

from typing import Any

from absl import flags

from experiments import cli
from malora_jax.distributed.topology import use_compiler_alone
from malora_jax.training.scaling import scaling_table

_MODELS = flags.DEFINE_list('models', None, 'Values of config.model.name.', required=True)
_TOPOLOGIES = flags.DEFINE_list('topologies', None, 'TPU chips, each a slice.', required=True)
_ROWS = flags.DEFINE_integer('rows_per_chip', 4, 'Rows of a batch a chip.', lower_bound=1)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file of what was found.', required=True)


def main(config: dict[str, Any]) -> None:
    """Compile the missing programs, and print the table."""
    use_compiler_alone()
    path = cli.directory(_OUTPUT)
    print(scaling_table(config, _MODELS.value, _TOPOLOGIES.value, _ROWS.value, path))


if __name__ == '__main__':
    cli.run(main)
