r"""Runs EleutherAI's evaluation harness on a run's checkpoint, or on a base model.

The arguments are those of `lm_eval run`, such as --num_fewshot, --limit, --output_path with
--log_samples, or --include_path for tasks of one's own. The harness comes with the extra `harness`:
pip install 'malora_jax[harness]'.

Examples:
    python -m experiments.harness --model_args workdir=runs/quickstart --tasks arc_easy,piqa
    python -m experiments.harness --model_args model=smollm2-135m --tasks gsm8k --batch_size 32

What --model_args takes:
    workdir     directory of a run: its best checkpoint, or the newest if none was measured; or of
                an exported adapter
    model       instead of it, name of a base model, and
    weights     the base's weights, if they are not the preset's own or where they were, and
    dtype       float32 or bfloat16
    max_length  positions to use, if fewer than the model has: attention needs their square
    seed        of what is drawn in tasks that sample
"""

import importlib.util
import sys
import traceback
from typing import Any

from experiments import cli
from malora_jax import data, errors, inference
from malora_jax.models import Decoder
from malora_jax.models.loading.weights import load_base, model_config

# What the command line begins with; what is given later takes its place.
_ARGUMENTS = ('run', '--model', 'malora_jax', '--batch_size', 'auto')

_Subject = tuple[Decoder, Any, data.Tokenizer, str | None]


def load(workdir: str = '', model: str = '', weights: str = '', dtype: str = 'float32') -> _Subject:
    """The model that --model_args names, as `evaluation.harness.Subject` has it.

    Raises:
        UserError: not exactly one of run and base model is named, or it cannot be loaded.
    """
    if bool(workdir) == bool(model):
        raise errors.UserError(
            '--model_args must name a run, workdir=DIR, or a base model, model=NAME.'
        )
    if workdir:
        found = inference.load(str(workdir), str(weights) or None)
        end = found.template.end(found.tokenizer)
        return found.model, found.variables, found.tokenizer, end
    config = model_config(str(model), str(weights), dtype)
    base = load_base(config, str(weights))
    return Decoder(config), {'params': base.params}, base.tokenizer, None


def main() -> None:
    """Runs the harness's command line with our model.

    Raises:
        UserError: the harness is not installed, or refuses what it is given.
    """
    if importlib.util.find_spec('lm_eval') is None:
        raise errors.UserError("lm_eval is not installed: run pip install 'malora_jax[harness]'.")
    from lm_eval.__main__ import cli_evaluate

    from malora_jax.evaluation import harness

    harness.register(load)
    if {'-h', '--help'} & {*sys.argv}:
        print(__doc__)
    sys.argv[1:1] = _ARGUMENTS
    try:
        cli_evaluate()
    except ValueError as error:
        if _raised_in(error).startswith('lm_eval.'):
            raise errors.UserError(str(error)) from error
        raise


def _raised_in(error: BaseException) -> str:
    """The module that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals['__name__']


if __name__ == '__main__':
    cli.call(main)
