"""Flags that several stages have: paths, settings of a dataclass, and the model that is asked."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

from absl import flags

from experiments import cli
from malora_jax import buckets
from malora_jax.errors import UserError
from malora_jax.ultralink.llm.chat import Model
from malora_jax.ultralink.llm.opened import Choice, is_local, opened
from malora_jax.ultralink.manifest import Manifest

TOKENIZER = 'Model whose tokenizer counts: a preset such as llama2-13b, a GGUF file or a directory.'


def define_fields(kind: type, **helps: str) -> Callable[[], dict[str, Any]]:
    """Flags for the fields of a dataclass.

    Args:
        kind: the dataclass.
        **helps: what each flag is for, by the field's name.

    Returns:
        What gives the fields' values when flags are parsed.
    """
    held: dict[str, flags.FlagHolder[Any]] = {}
    for name, text in helps.items():
        default = getattr(kind, name)
        define = flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_float
        held[name] = define(name, default, text)
    return lambda: {name: flag.value for name, flag in held.items()}


def ask(choice: Choice, run: Callable[[Model], Awaitable[Manifest]]) -> Manifest:
    """Runs a stage that asks a model, which is opened for it.

    Args:
        choice: which model.
        run: the stage, given the model.

    Raises:
        UserError: as `opened` and the stage.
    """

    async def with_model() -> Manifest:
        async with opened(choice) as model:
            return await run(model)

    return asyncio.run(with_model())


def define_llm() -> Callable[[pathlib.Path], Choice]:
    """Flags for the model that is asked.

    Returns:
        What gives the choice for an output directory, beside which the cache is.
    """
    llm = flags.DEFINE_string(
        'llm',
        None,
        "A model's name at the endpoint; or local:RUN or local:configs/NAME.py for one of our own.",
        required=True,
    )
    url = flags.DEFINE_string('base_url', None, "Of the endpoint; default: OpenAI's.")
    concurrency = flags.DEFINE_integer(
        'concurrency', None, 'Requests at a time; default: 64, of our own model 8.', lower_bound=1
    )
    timeout = flags.DEFINE_float('timeout', 600.0, 'Seconds for a try of a request.')
    limit = flags.DEFINE_integer(
        'token_limit', 0, 'Tokens that the answers in the cache may have cost; 0 = any.'
    )
    cache = flags.DEFINE_string(
        'cache', None, 'File of all answers; default: answers.sqlite beside the output.'
    )

    def choice(output: pathlib.Path) -> Choice:
        path = pathlib.Path(cache.value) if cache.value else output.parent / 'answers.sqlite'
        name = llm.value or ''
        most = concurrency.value or (8 if is_local(name) else 64)
        return Choice(name, path, most, url.value, timeout.value, limit.value)

    return choice


def paths(flag: flags.FlagHolder[list[str] | None]) -> list[pathlib.Path]:
    """The paths that a flag names, or those of copies of what it names in a bucket.

    Raises:
        UserError: one of them is empty, as --input="$UNSET" gives it, or is there twice.
    """
    named = flag.value or []
    if not all(named):
        raise UserError(f'--{flag.name} holds an empty path.')
    found = [buckets.local(path) for path in named]
    twin = next((path for path in found if found.count(path) > 1), None)
    if twin:
        raise UserError(f'--{flag.name} holds {twin} twice.')
    return found


def output(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    """The directory that a flag names, which must be on a disk.

    Raises:
        UserError: it is in a bucket, or as `cli.directory`.
    """
    path = cli.directory(flag)
    if buckets.home(path) != path:
        raise UserError(f'--{flag.name}={flag.value}: a stage needs a directory on a disk.')
    return path
