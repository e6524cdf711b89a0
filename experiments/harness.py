r"""Run EleutherAI's evaluation harness on a run's checkpoint, or on a base model.

The arguments are those of `lm_eval run`, such as --num_fewshot, --limit, --output_path with
--log_samples, or --include_path for custom tasks. The harness comes with the extra `harness`:
pip install '.[harness]'.

Examples:
    python -m experiments.harness --model_args workdir=runs/quickstart --tasks arc_easy,piqa
    python -m experiments.harness --model_args model=smollm2-135m --tasks gsm8k --batch_size 32

Keys of --model_args:
    workdir     directory of a run or of an exported adapter. Of a run, the checkpoint with the
                lowest validation loss is used, or the newest one if none was measured
    model       name of a base model, instead of workdir
    weights     location of the base model's weights, if they are not the preset's or have moved
    dtype       float32 or bfloat16, with model only
    max_length  maximum number of tokens per sequence; default: the model's context length. A
                smaller number saves memory: attention needs memory in proportion to its square
    seed        random seed of tasks that sample
"""

import importlib.util
import sys
import traceback
from typing import Any

from experiments import cli
from malora_jax import commands, data, errors, inference
from malora_jax.models import Decoder
from malora_jax.models.loading.base_model import load_base, model_config

# Default arguments of the command line; later arguments override them.
_ARGUMENTS = ('run', '--model', 'malora_jax', '--batch_size', 'auto')

_ModelParts = tuple[Decoder, Any, data.TokenizerProtocol, str | None]


def load_model(
    workdir: str = '', model: str = '', weights: str = '', dtype: str = 'float32'
) -> _ModelParts:
    """Load the model that --model_args names.

    Args:
        workdir: Directory of a run or an exported adapter; '' for a base model.
        model: Name of a base model; '' for a run.
        weights: Location of the base model's weights; '' for the default.
        dtype: Data type of a base model, 'float32' or 'bfloat16'.

    Returns:
        The fields of `evaluation.harness.LoadedModel`, as a tuple.

    Raises:
        UserError: Neither `workdir` nor `model` is given, or both are; or the model cannot be
            loaded.
    """
    if bool(workdir) == bool(model):
        raise errors.UserError(
            '--model_args must name a run, workdir=DIR, or a base model, model=NAME.'
        )
    if workdir:
        language_model = inference.load(str(workdir), str(weights) or None)
        end = language_model.template.get_end_token(language_model.tokenizer)
        return language_model.model, language_model.variables, language_model.tokenizer, end
    config = model_config(str(model), str(weights), dtype)
    base = load_base(config, str(weights))
    return Decoder(config), {'params': base.params}, base.tokenizer, None


def main() -> None:
    """Run the harness's command line with our model.

    Raises:
        UserError: The harness is not installed, or it refuses an argument.
    """
    if importlib.util.find_spec('lm_eval') is None:
        raise errors.missing_extra('lm_eval is not installed', 'harness')
    from lm_eval.__main__ import cli_evaluate

    from malora_jax.evaluation import harness

    harness.register(load_model)
    if {'-h', '--help'} & {*sys.argv}:
        print(commands.spell(__doc__))
    sys.argv[1:1] = _ARGUMENTS
    try:
        cli_evaluate()
    except ValueError as error:
        if _raising_module(error).startswith('lm_eval.'):
            raise errors.UserError(str(error)) from error
        raise


def _raising_module(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals['__name__']


if __name__ == '__main__':
    cli.call_and_exit(main)
