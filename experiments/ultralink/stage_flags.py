"""Command-line flags of a stage, defined from its entry in the registry of stages."""

import pathlib
import textwrap
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli
from malora_jax import cloud_storage
from malora_jax.errors import UserError
from malora_jax.ultralink import languages
from malora_jax.ultralink.llm.model_choice import ModelChoice, is_local
from malora_jax.ultralink.llm.request_format import EndpointSettings
from malora_jax.ultralink.pipeline import check_inputs
from malora_jax.ultralink.selection import Selection
from malora_jax.ultralink.settings import Declaration, Settings, declarations
from malora_jax.ultralink.stage import Config, StageRun
from malora_jax.ultralink.stage_command import Command
from malora_jax.ultralink.text.tokens import load_token_counter

_TOKENIZER = (
    'Tokenizer that counts tokens: name of a model preset such as llama2-13b, or smollm2-135m, '
    'which `make setup` installs, so it needs no network; cl100k, with which the paper counts; or '
    'path of a GGUF file or of a directory with tokenizer.json.'
)
_LLM = (
    'Language model to query: name of a model at the endpoint; or, to decode in this process, '
    'local:runs/NAME for a trained model or local:configs/NAME.py for the base model of a config.'
)
_BASE_URL = (
    'Base URL of the OpenAI-compatible endpoint to query, such as http://127.0.0.1:8000/v1; '
    "default: OpenAI's."
)
_CONCURRENCY = (
    'Maximum number of model requests in progress at a time; default: 64, 8 for a local model, or '
    '5,000 with --batch.'
)
_TIMEOUT = 'Timeout of one attempt at a model request, in seconds.'
_TOKEN_LIMIT = (
    'Maximum number of tokens, summed over all model requests and replies, including those in the '
    'cache; the stage stops before it exceeds this number; 0 = no limit.'
)
_CACHE = (
    'SQLite file that caches the replies of the model; default: answers.sqlite next to the output '
    'directory.'
)
_SAMPLE = (
    'Number of items in a random sample of the input; a larger sample contains the smaller one and '
    'extends its output; default: all items, in the order of the input.'
)
_LIMIT = (
    'Maximum number of items to process, the first ones of the input or sample; a larger limit '
    'extends the output; default: no limit.'
)
_PREVIEW = (
    'Instead of a run, print the prompts and replies of this number of random items; the replies '
    'are cached, and no output is written.'
)
_ESTIMATE = (
    'Instead of a run, print its estimated number of requests and tokens, and its price; no '
    'request is sent, and no output is written.'
)
_LANGUAGE_FILES = (
    'TOML files of languages that are not built in and occur in the rows, separated by commas.'
)
_SEED = 'Random seed of all random choices of the stage.'
# Flags by group, for --help; the others are the settings of the stage.
_FLAG_GROUPS = {
    'data': ('input', 'output', 'language_files', 'tokenizer', 'sample', 'limit'),
    'before': ('preview', 'estimate'),
    'model': ('llm', 'base_url', 'batch', 'concurrency', 'timeout', 'cache'),
    'format': ('preset', 'parameter_names', 'extra_body', 'extra_headers', 'api_key_variable'),
    'limits': ('token_limit', 'prices', 'price_limit', 'requests_per_minute', 'tokens_per_minute'),
}
# A stage with more flags lists them by group.
_MAX_UNGROUPED = 6
# Function that defines a flag, by the type of the settings field.
_DEFINE: dict[Any, Any] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    Sequence[pathlib.Path]: flags.DEFINE_list,
}


class StageFlags:
    """Flags of a stage: the constructor defines them, and `parse` returns their values."""

    def __init__(self, stage: Command, registry: flags.FlagValues = flags.FLAGS):
        self._stage = stage
        self._registry = registry
        self._flags: dict[str, flags.FlagHolder[Any]] = {}
        if stage.inputs:
            self._define('input', stage.inputs, flags.DEFINE_list, required=True)
        if stage.output:
            self._define('output', stage.output, required=True)
        if 'tokenizer' in stage.needs:
            self._define('tokenizer', _TOKENIZER, required=True)
        if 'languages' in stage.needs:
            self._define('language_files', _LANGUAGE_FILES, flags.DEFINE_list, [])
        if 'seed' in stage.needs:
            self._define('seed', _SEED, flags.DEFINE_integer, 0)
        if 'model' in stage.needs:
            self._define_selection()
            self._define_model()
        self._define_settings(stage.config)

    @property
    def help(self) -> str:
        """Text that --help prints above the flags; it lists them by group if there are many."""
        if len(self._flags) <= _MAX_UNGROUPED:
            return self._stage.help
        named = {name for names in _FLAG_GROUPS.values() for name in names}
        groups = {
            **_FLAG_GROUPS,
            'settings': tuple(name for name in self._flags if name not in named),
        }
        lines = ['Flags by group:']
        for group, names in groups.items():
            listed = ', '.join(f'--{name}' for name in names if name in self._flags)
            if listed:
                lines += textwrap.wrap(
                    listed,
                    100,
                    initial_indent=f'    {group:10}',
                    subsequent_indent=' ' * 14,
                    break_on_hyphens=False,
                )
        text, example, rest = self._stage.help.partition('\n\nExample')
        return '\n'.join([f'{text}\n', *lines]) + example + rest

    @property
    def preview_items(self) -> int:
        """Number of items to preview; 0 = no preview."""
        return self._value('preview')

    @property
    def only_estimates(self) -> bool:
        """True if the estimate is printed, and nothing is run."""
        return self._value('estimate')

    def parse(self) -> tuple[StageRun[Any], ModelChoice | None]:
        """Return the run that the flags describe, and the choice of the model.

        The choice is None for a stage that uses no model.

        Raises:
            UserError: A value is not allowed, a path is empty or cannot be used, or the tokenizer
                cannot be loaded; or both --preview and --estimate are given.
        """
        stage = self._stage
        if 'model' in stage.needs and self.preview_items and self.only_estimates:
            raise UserError(
                '--preview and --estimate are separate commands: first preview some items, then '
                'repeat the command with --estimate.'
            )
        for path in self._paths('language_files') if 'languages' in stage.needs else ():
            languages.add_file(path)
        output = self._output() if stage.output else pathlib.Path()
        choice = self._model_choice(output) if 'model' in stage.needs else None
        config = self._settings(stage.config)
        resources: dict[str, Any] = {}
        if 'seed' in stage.needs:
            resources['seed'] = self._value('seed')
        if 'tokenizer' in stage.needs:
            resources['token_counter'] = load_token_counter(self._value('tokenizer'))
        if choice:
            resources['concurrency'] = choice.concurrency
            resources['selection'] = Selection(self._value('sample'), self._value('limit'))
        inputs = self._paths('input') if stage.inputs else stage.find_inputs(config)
        check_inputs(stage.name, inputs)
        return StageRun(config, inputs, output, **resources), choice

    def _define(
        self,
        name: str,
        text: str,
        kind: Any = flags.DEFINE_string,
        default: Any = None,
        **options: Any,
    ) -> None:
        if options.get('required'):
            text = f'{text} Required.'
        self._flags[name] = kind(name, default, text, flag_values=self._registry, **options)

    def _define_selection(self) -> None:
        for name, text in (('sample', _SAMPLE), ('limit', _LIMIT), ('preview', _PREVIEW)):
            self._define(name, text, flags.DEFINE_integer, 0, lower_bound=0)
        self._define('estimate', _ESTIMATE, flags.DEFINE_boolean, False)

    def _define_model(self) -> None:
        self._define('llm', _LLM, required=True)
        self._define('base_url', _BASE_URL)
        self._define('concurrency', _CONCURRENCY, flags.DEFINE_integer, lower_bound=1)
        self._define('timeout', _TIMEOUT, flags.DEFINE_float, 600.0)
        self._define('token_limit', _TOKEN_LIMIT, flags.DEFINE_integer, 0)
        self._define('cache', _CACHE)
        self._define_settings(EndpointSettings)

    def _define_settings(self, settings: type[Settings]) -> None:
        """Define a flag for each field of a settings dataclass."""
        hints = typing.get_type_hints(settings)
        for name, each in declarations(settings).items():
            default, required = getattr(settings, name, None), not hasattr(settings, name)
            kind = _DEFINE.get(hints[name], flags.DEFINE_string)
            self._define(name, each.flag_help, kind, default, required=required)

    def _value(self, name: str) -> Any:
        return self._flags[name].value

    def _model_choice(self, output: pathlib.Path) -> ModelChoice:
        llm, cache = self._value('llm'), self._value('cache')
        return ModelChoice(
            llm,
            pathlib.Path(cache) if cache else output.parent / 'answers.sqlite',
            self._value('concurrency') or self._default_concurrency(llm),
            self._value('base_url'),
            self._value('timeout'),
            self._value('token_limit'),
            self._settings(EndpointSettings),
        )

    def _default_concurrency(self, llm: str) -> int:
        if is_local(llm):
            return 8
        # All requests in progress make one batch, which takes hours.
        return 5000 if self._value('batch') else 64

    def _settings(self, settings: type[Config]) -> Config:
        """Return a settings dataclass with the values of its flags."""
        hints = typing.get_type_hints(settings)
        return settings(
            **{
                name: self._setting_value(name, hints[name], declaration)
                for name, declaration in declarations(settings).items()
            }
        )

    def _setting_value(self, name: str, hint: Any, declaration: Declaration) -> Any:
        """Return the value that a flag gives to its settings field, in the type of the field.

        The path of the file of a language becomes the code of the language, which is added.
        """
        if declaration.languages and languages.is_file(self._value(name)):
            return languages.add_file(cli.flag_path(self._flags[name])).code
        if hint == Sequence[pathlib.Path]:
            return self._paths(name)
        if hint == pathlib.Path or (hint == pathlib.Path | None and self._value(name)):
            return cli.flag_path(self._flags[name])
        if hint == pathlib.Path | None:
            return None
        return self._value(name)

    def _paths(self, name: str) -> list[pathlib.Path]:
        """Return the local paths in a list flag; paths in cloud storage are downloaded first.

        Raises:
            UserError: A path is empty, as with --input="$UNSET", or is given twice.
        """
        paths = self._value(name)
        if not all(paths):
            raise UserError(f'--{name} contains an empty path.')
        local_paths = [cloud_storage.localize(path) for path in paths]
        duplicate = next((path for path in local_paths if local_paths.count(path) > 1), None)
        if duplicate:
            raise UserError(f'--{name} contains {duplicate} twice.')
        return local_paths

    def _output(self) -> pathlib.Path:
        """Return the path of the output directory.

        Raises:
            UserError: The path is empty, or the directory is in cloud storage.
        """
        path = cli.flag_path(self._flags['output'])
        if cloud_storage.remote_path(path) != path:
            raise UserError(
                f'--output={self._value("output")}: the directory of a stage must be on a local '
                'disk, not in a bucket.'
            )
        return path
