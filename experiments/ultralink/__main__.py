r"""Generate multilingual fine-tuning data, stage by stage; needs the extra `ultralink`.

Each stage reads JSON Lines, and writes a directory of JSON Lines files with a manifest. Repeat the
same command to resume after an interruption; the output is byte-identical to that of an
uninterrupted run. Flag names may have hyphens instead of underscores.

Examples:
    python -m experiments.ultralink documents --language=fr --input=wiki/fr \
      --tokenizer=llama2-13b --output=data/fr/documents
    python -m experiments.ultralink dialogues --input=data/fr/documents --llm=MODEL \
      --base-url=http://127.0.0.1:8000/v1 --tokenizer=llama2-13b --output=data/fr/dialogues
    python -m experiments.ultralink STAGE --help
"""

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Iterator

from absl import flags

from experiments import cli, compilation_cache
from experiments.ultralink import stage_flags
from malora_jax import commands, shutdown
from malora_jax.errors import UserError, unknown_name
from malora_jax.ultralink.estimate import estimate
from malora_jax.ultralink.llm.cache import CachedModel
from malora_jax.ultralink.llm.model_choice import ModelChoice, is_local, open_model
from malora_jax.ultralink.pipeline import GROUPS
from malora_jax.ultralink.preview import preview
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stage_command import FileCommand, Stage
from malora_jax.ultralink.stages import STAGES


def main() -> None:
    """Run the stage that the first command-line argument names.

    Raises:
        UserError: The name of the stage is missing or unknown.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ''
    if name in ('-h', '--help', '--helpfull', '--helpshort'):
        print(commands.spell(f'{__doc__}\n{_listing()}'))
        return
    if not name:
        print(_listing(), flush=True)
        raise UserError(f'Give the name of a stage as the first argument: {", ".join(STAGES)}.')
    if name not in STAGES:
        raise unknown_name('stage', name, STAGES)
    stage = STAGES[name]
    words = [*map(_with_underscores, sys.argv[2:])]
    if stage.argument and words and not words[0].startswith('-'):
        words[0] = f'--{stage.argument}={words[0]}'
    sys.argv[:] = [f'experiments.ultralink.{name}', *words]
    command_flags = stage_flags.StageFlags(stage)
    # absl prints this docstring above the flags in --help.
    sys.modules['__main__'].__doc__ = command_flags.help
    flags.adopt_module_key_flags(stage_flags)
    cli.run_without_config(lambda: _run(stage, command_flags), compiles=False)


def _listing() -> str:
    """Return the names and purposes of all stages as text, by group."""
    width = max(map(len, STAGES))
    lines = []
    for heading, names in GROUPS.items():
        lines += ['', heading, *(f'  {name:{width}}  {STAGES[name].purpose}' for name in names)]
    return '\n'.join(lines[1:])


def _run(stage: Stage | FileCommand, command_flags: stage_flags.StageFlags) -> None:
    run, choice = command_flags.parse()
    if choice and is_local(choice.llm):
        compilation_cache.enable()
    if isinstance(stage, FileCommand):
        text, status = stage.function(run)
        print(text)
        if status:
            sys.exit(status)
    else:
        if choice:
            print(asyncio.run(_run_with_model(stage, run, choice, command_flags)))
        else:
            print(stage.summary(run, asyncio.run(stage.run(run))))


async def _run_with_model(
    stage: Stage, run: StageRun, choice: ModelChoice, command_flags: stage_flags.StageFlags
) -> str:
    """Preview, estimate or run a stage that uses a model, and return the text to print."""
    if command_flags.preview_items or command_flags.only_estimates:
        # Neither waits for batches, which take hours.
        endpoint = dataclasses.replace(choice.endpoint, batch=False)
        choice = dataclasses.replace(
            choice, endpoint=endpoint, sends_requests=not command_flags.only_estimates
        )
    async with open_model(choice) as model:
        run = dataclasses.replace(run, model=model, progress_facts=lambda: model.progress_facts)
        if command_flags.preview_items:
            with _reported_usage(model):
                return await preview(stage, run, command_flags.preview_items)
        expected = await estimate(stage, run)
        if command_flags.only_estimates:
            return str(expected)
        print(expected, file=sys.stderr, flush=True)
        with _reported_usage(model):
            return stage.summary(run, await stage.run(run))


@contextlib.contextmanager
def _reported_usage(model: CachedModel) -> Iterator[None]:
    """Print the counts of requests to stderr after the block, or if a signal ends the process.

    They are not a part of the output, because a repeated command has the same output.
    """
    has_ended = False

    def report_interrupted() -> None:
        if not has_ended and (counts := model.report_run()):
            start = '\n' if sys.stderr.isatty() else ''  # After the progress bar.
            shutdown.say(start + counts, 2)

    shutdown.register_cleanup(report_interrupted)
    try:
        yield
    finally:
        has_ended = True
        if counts := model.report():
            print(counts, file=sys.stderr)


def _with_underscores(word: str) -> str:
    """Replace hyphens in a flag name by underscores: --base-url becomes --base_url."""
    name, equals, value = word.partition('=')
    return (
        name.replace('-', '_').replace('__', '--', 1) + equals + value if word[:2] == '--' else word
    )


if __name__ == '__main__':
    cli.call_and_exit(main)
