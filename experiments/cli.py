"""Shared parts of the command-line entry points: the config flag, and one-line error messages."""

import contextlib
import errno
import gc
import itertools
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from experiments import compilation_cache
from malora_jax import cloud_storage, commands, shutdown
from malora_jax.errors import UserError
from malora_jax.frames import call_with_room

# Attribute flags that this module defines to the calling command, so that its --help lists them.
flags.disclaim_key_flags()

# Paragraph of --help that all commands with --config share.
_CONFIG_HELP = """\
Config: --config=configs/NAME.py names the config file. If the file takes an argument, such as the
method, add it after a colon: --config=configs/NAME.py:METHOD. Override any field of the config with
--config.FIELD=VALUE, or --config.SECTION.FIELD=VALUE. List the fields and their values with
    python -c "from configs.NAME import get_config; print(get_config())"
"""


def run(main: Callable[[dict[str, Any]], None]) -> None:
    """Parse the command line and call `main` with the config as plain dicts.

    Exit status:
        0    `main` returned; or SIGTERM ended a command that resumes when it is run again
        1    the run cannot continue (a non-finite loss, a full disk)
        2    user error
        130  Ctrl-C
        143  SIGTERM ended any other command
    Every nonzero status comes with one line on stderr. Any other exception is a bug: it ends the
    process with status 1 and shows its traceback.

    Args:
        main: Function that runs the command.
    """
    text = (
        'Python config file, followed by a colon and its argument if it takes one, such as '
        'configs/quickstart.py:malora. --config.SECTION.FIELD=VALUE overrides a field. Required.'
    )
    _insert_config_help()
    try:
        # Defining the flag already reads the files of --flagfile.
        _check_regular(sys.argv)
        config = config_flags.DEFINE_config_file('config', None, text)
        flags.FLAGS['config'].parser = _ConfigFileParser('config')
    except (UserError, flags.Error, OSError, ValueError) as error:
        _fail(str(error), 2)
    run_without_config(lambda: main(config.value.to_dict()))


def run_without_config(main: Callable[[], None], *, compiles: bool = True) -> None:
    """Parse the command line of a command without a config, and call `main`.

    The exit status is the same as for `run`.

    Args:
        main: Function that runs the command.
        compiles: Whether the command compiles programs, so that the compilation cache is enabled.
            This loads JAX.
    """
    command = sys.modules['__main__']
    command.__doc__ = commands.spell(command.__doc__ or '')  # Python -OO drops docstrings.
    call_and_exit(lambda: app.run(lambda _: _start(main, compiles), flags_parser=_parse))


def define_weights_flag() -> flags.FlagHolder[str | None]:
    """Define the flag --weights, for commands that use a trained model."""
    text = "Location of the base model's weights, if they have moved since training."
    return flags.DEFINE_string('weights', None, text)


def flag_path(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    """Return the path that a flag names, or the path of its local copy if it is in a bucket.

    Args:
        flag: Flag that names a directory or file.

    Raises:
        UserError: The flag is empty, as in --workdir="$UNSET", or `cloud_storage.localize`
            refuses it.
    """
    if not flag.value:
        raise UserError(f'--{flag.name} is empty; it must name a directory.')
    return cloud_storage.localize(flag.value)


def call_and_exit(main: Callable[[], None]) -> NoReturn:
    """Call `main`, and end the process with the exit status that `run` describes."""
    # Collections of garbage visit the objects of all modules, which live until the end. By default,
    # they take a fifteenth of the time in which a command starts, compiles and trains a tiny model.
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    status, message = 0, ''
    try:
        try:
            call_with_room(main)
        except shutdown.Preempted:
            message = shutdown.SAVED_MESSAGE
        except SystemExit as error:  # absl raises SystemExit when `main` returns.
            status = _status(error)
        cloud_storage.upload_changes()
        sys.stdout.flush()
        jax = sys.modules.get('jax')  # Most commands of UltraLink do not load it.
        if not status and jax and jax.distributed.is_initialized():
            jax.distributed.shutdown()  # Other processes wait for this.
        shutdown.exit_process(status, message)
    except UserError as error:
        _fail(str(error), 2)
    except (FloatingPointError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _fail(
                'The disk is full. Free some space, then run the same command again to resume.', 1
            )
        _fail(str(error), 1)
    except KeyboardInterrupt:
        shutdown.exit_by_signal(signal.SIGINT)
    except BaseException:
        exit_process(1, traceback.format_exc().rstrip())


def exit_process(status: int, message: str = '') -> NoReturn:
    """End the process with `shutdown.exit_process`, after flushing the printed output.

    Args:
        status: Exit status.
        message: Last line of stdout, or of stderr if the status is not 0.
    """
    with contextlib.suppress(OSError):  # The message may be about a closed pipe.
        sys.stdout.flush()
    shutdown.exit_process(status, message)


class _ConfigFileParser(config_flags.ConfigFileFlagParser):
    """Parser of --config that also finds the configs that come with malora_jax."""

    def parse(self, path: str) -> Any:
        """Return the config of a file, whose path may end with a colon and an argument."""
        name, colon, argument = path.partition(':')
        return super().parse(f'{commands.find_config(name)}{colon}{argument}')


def _insert_config_help() -> None:
    """Insert the help on the config after the first paragraph of the command's docstring."""
    command = sys.modules['__main__']
    if command.__doc__:  # Python -OO drops docstrings.
        purpose, break_, rest = command.__doc__.partition('\n\n')
        command.__doc__ = f'{purpose}\n\n{_CONFIG_HELP}{break_[1:]}{rest}'


def _status(end: SystemExit) -> int:
    """Return the exit status of a SystemExit; print its message to stderr if it has one."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _start(main: Callable[[], None], compiles: bool) -> None:
    if compiles:
        compilation_cache.enable()
    main()


def _parse(arguments: Sequence[str]) -> list[str]:
    """Parse flags and config, and end with a one-line message if they are invalid."""
    try:
        _check_regular(arguments)
        rest = flags.FLAGS(list(arguments))
        if 'config' in flags.FLAGS:
            _check_config_file()
            _check_overrides()
    except SystemExit:  # After --help, where absl would report failure.
        sys.exit(0)
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        # An override loads the config file before it is checked. The last line names the file.
        _fail(f'--config: {str(error).splitlines()[-1].strip()} (from {os.getcwd()}).', 2)
    except SyntaxError as error:
        _fail(f'--config: the file is not valid Python: {error}.', 2)
    except (KeyError, AttributeError) as error:
        text = ' '.join(_innermost(error).split())
        if 'get_config' in text:
            _fail('--config: the file defines no function get_config.', 2)
        _fail(f'The config does not have the field of an override: {text}', 2)
    except (flags.Error, TypeError, ValueError) as error:
        section = re.match(r'flag --(\S+?)=.* as a ConfigDict', str(error))
        if section:
            _fail(f'{section[1]} has fields: set each as --{section[1]}.FIELD=VALUE.', 2)
        # An error inside a config file arrives as the text of its traceback. The last line is
        # enough for a UserError; a bug in the file needs the whole traceback.
        _fail(str(error).rsplit('UserError: ')[-1], 2)
    except RecursionError:  # From absl's search for similar flags.
        _fail('A command-line flag is too long.', 2)
    if len(rest) > 1:
        _fail(f'Unexpected arguments: {" ".join(rest[1:])}; write flags as --flag=value.', 2)
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    return rest


def _check_regular(arguments: Sequence[str]) -> None:
    """Check that --config and --flagfile name regular files: reading a pipe would block forever."""
    words = [part for argument in arguments for part in argument.split('=', 1)]
    for flag, value in itertools.pairwise(words):
        name, path = flag.lstrip('-'), pathlib.Path(value.split(':')[0])
        if name in ('config', 'flagfile') and _exists(path) and not path.is_file():
            raise UserError(f'--{name}: {path} is not a regular file.')


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # The name is too long or holds a null character.
        return False


def _innermost(error: BaseException) -> str:
    """Return an error's message; if its first argument is another error, that error's message."""
    text = error.args[0] if error.args else error
    return _innermost(text) if isinstance(text, BaseException) and text is not error else str(text)


def _check_config_file() -> None:
    if flags.FLAGS['config'].value is None and not flags.FLAGS['config'].present:
        raise UserError('--config is required, such as --config=configs/quickstart.py.')
    path = _config_path()
    if not pathlib.Path(commands.find_config(path)).is_file():
        raise UserError(f'--config: there is no file {path} (looked for in {os.getcwd()}).')


def _config_path() -> str:
    return config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]


def _check_overrides() -> None:
    # The method has already set the adapter's fields, so an override would only change its name.
    method = config_flags.get_override_values(flags.FLAGS['config']).get('method')
    if method is not None:
        raise UserError(
            f'config.method cannot be overridden: write --config={_config_path()}:{method}.'
        )


def _fail(message: str, status: int) -> NoReturn:
    # User input may hold line breaks; only the traceback of a bug may have several lines.
    if 'Traceback' not in message:
        message = ' '.join(message.splitlines())
    exit_process(status, commands.spell(cloud_storage.with_remote_paths(message.strip())))
