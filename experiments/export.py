"""Export a trained model in a format that other programs read.

Formats:
    adapter       safetensors and a manifest, for all methods. `malora_jax.load` and the other
                  commands accept this directory in place of a run's, on any machine that has the
                  base model
    peft          format of Hugging Face PEFT, for LoRA, rsLoRA, DoRA and AsyLoRA
    merged        base model for `transformers` with the adapter merged into its weights, for LoRA,
                  rsLoRA, DoRA and AsyLoRA
    transformers  routed mixture for `transformers`, with the package `mixture_transformers`. It
                  includes the base model, unless --adapter_only is given
    vllm          routed mixture for vLLM, with the plugin `malora_vllm`. The base model is not
                  loaded
    base          base model alone, with the weights and the prompt template of the training. Other
                  programs load it together with `peft`, `vllm`, or `transformers` with
                  --adapter_only
    static        a plain LoRA that approximates a routed mixture, in the format `adapter`, from
                  which `peft` and `merged` can be made. In the mean update of the mixture, each
                  expert is weighted by its mean gate over the training examples of all tasks, or of
                  --task. The LoRA represents the mean update exactly, unless --rank truncates it to
                  a lower rank by a singular value decomposition

A method with parameters for each task (MTL-LoRA) is a LoRA for each task: with --task=NAME, the
formats adapter, peft and merged export the one of this task.

Examples:
    python -m experiments.export --workdir=runs/quickstart --format=adapter --output=exports/malora
    python -m experiments.export --workdir=runs/quickstart --format=static --output=exports/static
    python -m experiments.export --workdir=exports/static --format=peft --output=exports/peft
    python -m experiments.export --workdir=runs/quickstart --format=vllm --output=exports/vllm
"""

import pathlib

from absl import flags

from experiments import cli
from malora_jax import markdown
from malora_jax.analysis.static_export import static_export
from malora_jax.cloud_storage import remote_path
from malora_jax.errors import UserError
from malora_jax.export import (
    adapter,
    huggingface,
    huggingface_names,
    peft,
    transformers_mixture,
    vllm_mixture,
)
from malora_jax.export.adapter import is_adapter
from malora_jax.export.directory import check_new_directory
from malora_jax.export.trained_model import StoredModel, TrainedAdapter, TrainedModel
from malora_jax.training.prepare import data_digests
from malora_jax.training.restore import read_run_config, saved_model
from malora_jax.training.setup import build_setup
from malora_jax.training.workdir import check_run, read_workdir_config

_WRITERS = {
    'adapter': adapter.write_adapter,
    'peft': peft.write_peft,
    'merged': huggingface.write_merged,
    'base': huggingface.write_base,
}
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run or exported adapter to convert, or gs://BUCKET/PATH. Required.',
    required=True,
)
_WEIGHTS = cli.define_weights_flag()
_FORMAT = flags.DEFINE_enum(
    'format',
    'adapter',
    [*_WRITERS, 'transformers', 'vllm', 'static'],
    'Output format: adapter = safetensors and a manifest; peft = Hugging Face PEFT; merged = base '
    'model with the update merged into its weights; transformers or vllm = routed mixture for '
    'these programs; base = base model alone; static = plain LoRA that approximates a routed '
    'mixture.',
)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Directory to create for the exported model. Required.', required=True
)
_TASK = flags.DEFINE_string(
    'task',
    '',
    'With --format=static: name of a task. Each expert is weighted by its mean gate over the '
    "training examples of this task; '' = over those of all tasks. With adapter, peft and merged: "
    'name of the task whose LoRA is exported, if the method has parameters for each task.',
)
_RANK = flags.DEFINE_integer(
    'rank',
    0,
    'With --format=static: rank of the exported LoRA; 0 = the rank that represents the mean update '
    'of the mixture exactly.',
)
_ADAPTER_ONLY = flags.DEFINE_bool(
    'adapter_only',
    False,
    'With --format=transformers: leave out the base model, which is then loaded from the '
    'repository or location that the config names.',
)
_UNFINISHED = flags.DEFINE_bool('unfinished', False, 'Allow the export of an unfinished run.')


def main() -> None:
    """Load the run, and write it in the requested format."""
    workdir, output = cli.flag_path(_WORKDIR), cli.flag_path(_OUTPUT)
    saved = saved_model(workdir, _WEIGHTS.value)
    _check_flags(workdir)
    check_new_directory(output)  # Fail before the work.
    trained: TrainedModel | TrainedAdapter
    if _FORMAT.value == 'static':
        trained = _write_static(saved, output)
    elif _FORMAT.value == 'vllm':
        trained = saved.load_adapter()
        vllm_mixture.write_vllm_mixture(trained, output)
    elif _FORMAT.value == 'transformers':
        trained = saved.load()
        transformers_mixture.write_transformers_mixture(trained, output, _ADAPTER_ONLY.value)
    else:
        trained = saved.load()
        if _TASK.value or _FORMAT.value in ('peft', 'merged'):
            trained = trained.for_task(_TASK.value)
        _WRITERS[_FORMAT.value](trained, output)
    size = sum(file.stat().st_size for file in output.iterdir())
    model, steps = trained.model.config.name, f'after {trained.step:,} steps'
    what = (
        f'base model {model}' if _FORMAT.value == 'base' else f'{trained.method} on {model} {steps}'
    )
    print(f'{remote_path(output)}: {what}, {size / 1e6:.1f} MB.')
    if _ADAPTER_ONLY.value and not huggingface_names.has_base_weights(trained):
        print(
            f'{huggingface_names.base_name(trained)} does not have the base weights of the '
            'training: export them with --format=base, and load with '
            'from_pretrained(DIRECTORY, base=BASE_DIRECTORY).'
        )


def _check_flags(workdir: pathlib.Path) -> None:
    if is_adapter(workdir):
        if _FORMAT.value == 'static':
            raise UserError(
                f'{workdir} is an exported adapter; --format=static needs the directory of the '
                'run, whose data it is measured on.'
            )
    elif not _UNFINISHED.value and not (workdir / 'results.json').exists():
        raise UserError(
            f'The run in {workdir} has not finished: there is no results.json. Resume it, or '
            'export it as it is with --unfinished.'
        )
    if _FORMAT.value != 'static' and _RANK.value:
        raise UserError('--task and --rank are for --format=static.')
    if _FORMAT.value in ('base', 'transformers', 'vllm') and _TASK.value:
        raise UserError('--task is for --format=static, adapter, peft and merged.')
    if _FORMAT.value != 'transformers' and _ADAPTER_ONLY.value:
        raise UserError('--adapter_only is for --format=transformers.')


def _write_static(saved: StoredModel, output: pathlib.Path) -> TrainedModel:
    """Write a plain LoRA that approximates the routed mixture, and print their held-out losses.

    Args:
        saved: Run with the routed mixture.
        output: Directory to create for the LoRA.

    Returns:
        The LoRA, in the form of a trained model.
    """
    run = read_run_config(saved.path, _WEIGHTS.value)
    check_run(saved.path, read_workdir_config(saved.path), data_digests(run))
    setup = build_setup(run)
    found = static_export(setup, saved.restore(setup.base), _TASK.value, _RANK.value)
    adapter.write_adapter(
        found.trained, output, found.manifest_entries | {'held_out_loss': found.losses}
    )
    rows = [
        [
            'held-out loss (nats per token)',
            'base',
            found.manifest_entries['approximates'],
            'static',
        ]
    ]
    for task, losses in found.losses.items():
        rows.append([task, *(f'{losses[model]:.4f}' for model in ('base', 'mixture', 'static'))])
    print(markdown.table(rows))
    entries = found.manifest_entries
    print(
        f'Rank {entries["rank"]} (exact: {entries["exact_rank"]}) keeps '
        f'{100 * (1 - entries["lost_by_rank"] ** 2):.1f}% of the squared norm of the mean update; '
        f'gates averaged over the examples of {", ".join(entries["gates_of"])}.'
    )
    return found.trained


if __name__ == '__main__':
    cli.run_without_config(main)
