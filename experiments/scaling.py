r"""Print the memory and communication of a training step on TPU slices or GPUs, without them.

Needs pip install '.[tpu-plan]' or '.[gpu-plan]'. The training step is compiled for each pair of
a model and a topology, with FSDP over all devices. Each compilation takes a few minutes; pairs that
are already in the output file are skipped.

Example:
    python -m experiments.scaling \
      --config=configs/intra_domain.py:malora --config.model.dtype=bfloat16 \
      --models=llama2-7b,llama3.1-8b --topologies=v5e:2x2,v5e:4x4,v5e:8x8 --output=scaling.json
"""

from typing import Any

from absl import flags

from experiments import cli
from malora_jax.distributed.topology import disable_device_detection
from malora_jax.training.scaling import scaling_table

_MODELS = flags.DEFINE_list(
    'models',
    None,
    'Names of the base models to compile for (values of config.model.name). Required.',
    required=True,
)
_TOPOLOGIES = flags.DEFINE_list(
    'topologies',
    None,
    'TPU slices and GPUs to compile for, such as v5e:2x2,v5e:4x4 or h100:8. Required.',
    required=True,
)
_ROWS = flags.DEFINE_integer(
    'rows_per_chip', 4, 'Number of sequences in a batch per device.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'JSON file to write the results into. Pairs of a model and a topology that it already has are '
    'not compiled again. Required.',
    required=True,
)


def main(config: dict[str, Any]) -> None:
    """Compile the training steps that are not yet in the output file, and print the table."""
    disable_device_detection()
    path = cli.flag_path(_OUTPUT)
    print(scaling_table(config, _MODELS.value, _TOPOLOGIES.value, _ROWS.value, path))


if __name__ == '__main__':
    cli.run(main)
