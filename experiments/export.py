"""Writes a trained model in the form that others read.

    adapter  safetensors and a manifest; every method; `malora_jax.load` and the other commands
             take the directory in place of a run's, on any machine that has the base
    peft     LoRA, rsLoRA, DoRA and AsyLoRA as `peft` keeps them
    merged   the base with the update of these methods in its weights, for `transformers`

Example:
    python -m experiments.export --workdir=runs/quickstart --format=adapter --output=exports/malora
"""

from absl import flags

from experiments import cli
from malora_jax.export import adapter, huggingface
from malora_jax.training.restore import load_run

_WRITERS = {
    'adapter': adapter.write_adapter,
    'peft': huggingface.write_peft,
    'merged': huggingface.write_merged,
}
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.', required=True)
_FORMAT = flags.DEFINE_enum('format', 'adapter', list(_WRITERS), 'See above.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to make.', required=True)


def main() -> None:
    """Loads the run, and writes it."""
    trained = load_run(cli.directory(_WORKDIR))
    output = cli.directory(_OUTPUT)
    _WRITERS[_FORMAT.value](trained, output)
    size = sum(file.stat().st_size for file in output.iterdir())
    model = f'{trained.method} on {trained.model.config.name}'
    print(f'{output}: {model} after {trained.step:,} steps, {size / 1e6:.1f} MB.')


if __name__ == '__main__':
    cli.run_without_config(main)
