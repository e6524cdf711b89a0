"""Commands of `experiments.ultralink`: the entries of `stages.STAGES`, and how a stage runs."""

import pathlib
import textwrap
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from malora_jax.data.file_rows import Row
from malora_jax.ultralink import stage
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.settings import Settings
from malora_jax.ultralink.stage import PreparedStage, ReadItems, StageRun

_COMMAND = 'python -m experiments.ultralink'
_CACHE_HELP = """\
The model's replies are cached in a file, so that no request is paid for twice. The API key of the
endpoint is read from the environment variable OPENAI_API_KEY, or the one in --api_key_variable."""


def _wrapped(command: str) -> str:
    """Return a shell command line, wrapped with backslashes to at most 100 characters per line."""
    lines = textwrap.wrap(command, 92, break_long_words=False, break_on_hyphens=False)
    return '    ' + ' \\\n      '.join(lines)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `experiments.ultralink`.

    Attributes:
        name: First word of the command line; also the name of the stage in manifests.
        purpose: One sentence that says what the command does.
        details: Further text of `--help`.
        examples: Command-line arguments of each example.
        config: Dataclass of settings; each of its fields is a flag.
        inputs: Help text of the standard flag `--input`; '' = no standard flag. Instead, `config`
            may have fields for the inputs.
        find_inputs: Function that returns the input paths for given settings; used if there is no
            standard flag `--input`.
        output: Help text of `--output`; '' if there is no output directory.
        needs: Resources that the command uses: a language model, a tokenizer, a random seed, or
            the languages of rows. Each of them adds its own flags.
        argument: Name of the setting that may be given without a flag, as the first argument; '' =
            all settings need flags.
    """

    name: str
    purpose: str
    details: str
    examples: tuple[str, ...]
    config: type[Settings] = Settings
    inputs: str = ''
    find_inputs: Callable[[Any], Sequence[pathlib.Path]] = lambda config: []
    output: str = ''
    needs: tuple[Literal['model', 'tokenizer', 'seed', 'languages'], ...] = ()
    argument: str = ''

    @property
    def help(self) -> str:
        """Text that `--help` prints above the flags: purpose, details and examples."""
        cache_help = [_CACHE_HELP] if 'model' in self.needs else []
        examples = [_wrapped(f'{_COMMAND} {self.name} {each}') for each in self.examples]
        heading = 'Examples:' if len(examples) > 1 else 'Example:'
        parts = [self.purpose, self.details, *cache_help, '\n'.join([heading, *examples, ''])]
        return '\n\n'.join(parts)


def _describe(run: StageRun[Any], manifest: StageManifest) -> str:
    return stage.format_counts(manifest, run.output)


@dataclass(frozen=True, kw_only=True)
class Stage(Command):
    """A command that turns input rows into output rows, and resumes after an interruption.

    Attributes:
        prepare: Function that reads what a run needs, and returns a `PreparedStage`.
        read: Function that yields the input items; None = `shards.read`, which reads the rows of
            other stages.
        summary: Function that returns the text to print when the stage has finished.
    """

    prepare: Callable[[StageRun[Any]], PreparedStage]
    read: ReadItems | None = None
    summary: Callable[[StageRun[Any], StageManifest], str] = _describe

    def run(self, run: StageRun[Any]) -> Coroutine[Any, Any, StageManifest]:
        """Prepare the stage, and return the coroutine that runs it.

        Preparation may compute for a long time. Because it runs outside the event loop, Ctrl-C
        interrupts it immediately.

        Args:
            run: Settings, data and resources.

        Returns:
            Coroutine that returns the manifest of the finished stage.

        Raises:
            UserError: A setting or an input is wrong (see `prepare` and `stage.run`), or the model
                rejects a request.
            OSError: The model fails or cannot be reached.
        """
        prepared = self.prepare(run)
        return stage.run(
            self.name,
            prepared.process,
            run.inputs,
            run.output,
            settings=self.recorded_settings(run, prepared),
            seed=run.seed,
            concurrency=run.concurrency if 'model' in self.needs else prepared.concurrency,
            shard_items=run.shard_items,
            selection=run.selection,
            read=self.read,
            progress_facts=run.progress_facts,
        )

    def items(self, run: StageRun[Any]) -> Iterable[Row]:
        """Return the selected items of a run."""
        return run.selection.select(stage.read_items(run.inputs, self.read), run.seed)

    def recorded_settings(self, run: StageRun[Any], prepared: PreparedStage) -> dict[str, Any]:
        """Return the settings that the manifest of a run records."""
        settings = run.config.recorded_values
        if 'model' in self.needs:
            settings['llm'] = run.model.name
        if 'tokenizer' in self.needs:
            settings['tokenizer'] = run.token_counter.fingerprint
        language = LANGUAGES.get(settings.get('language', ''))
        if language and language.own_digest:
            settings['language_file'] = language.own_digest
        return {**settings, **prepared.fingerprints}


@dataclass(frozen=True, kw_only=True)
class FileCommand(Command):
    """A command that is not a stage: it writes no manifest and cannot resume.

    Attributes:
        function: Function that returns the text to print and the exit status.
    """

    function: Callable[[StageRun[Any]], tuple[str, int]]
