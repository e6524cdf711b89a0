"""What the command-line entries share: the config flag, and mistakes as one line of stderr."""

import contextlib
import errno
import itertools
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import compilation_cache
from malora_jax import buckets, shutdown
from malora_jax.errors import UserError


def run(main: Callable[[dict[str, Any]], None]) -> None:
    """Parses the command line and calls `main` with the config as plain dicts.

    Exit status: 0 when `main` returns; 2 after a mistake of the user's; 1 when the run cannot go on
    (a loss that is not finite, a full disk); 130 when interrupted; after SIGTERM 0 if the same
    command resumes, otherwise 143. All but 0 with one line on stderr; anything else is a bug and
    shows its traceback.
    """
    text = 'Config file, with an argument if it takes one: configs/NAME.py[:METHOD].'
    try:
        # It reads the files of --flagfile at once.
        _check_regular(sys.argv)
        config = config_flags.DEFINE_config_file('config', None, text)
    except (UserError, flags.Error, OSError, ValueError) as error:
        _fail(str(error), 2)
    run_without_config(lambda: main(config.value.to_dict()))


def run_without_config(main: Callable[[], None]) -> None:
    """The same for a command that takes no config."""
    call(lambda: app.run(lambda _: _start(main), flags_parser=_parse))


def define_weights() -> flags.FlagHolder[str | None]:
    """The flag of commands that use a trained model."""
    text = "Where the base's weights are, if not where they were in training."
    return flags.DEFINE_string('weights', None, text)


def directory(flag: flags.FlagHolder[str | None]) -> pathlib.Path:
    """The path that a flag names, or that of a copy of what it names in a bucket.

    Raises:
        UserError: it names none, as --workdir="$UNSET" does, or as `buckets.local`.
    """
    if not flag.value:
        raise UserError(f'--{flag.name} is empty; it must name a directory.')
    return buckets.local(flag.value)


def call(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and ends the process with the status that `run` describes."""
    status, message = 0, ''
    try:
        try:
            main()
        except shutdown.Preempted:
            message = shutdown.SAVED
        except SystemExit as error:  # absl raises it when `main` returns.
            status = _status(error)
        buckets.push()
        sys.stdout.flush()
        if not status and jax.distributed.is_initialized():
            jax.distributed.shutdown()  # The other processes wait for it.
        shutdown.leave(status, message)
    except UserError as error:
        _fail(str(error), 2)
    except (FloatingPointError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _fail('The disk is full: make room; the same command goes on from what it saved.', 1)
        _fail(str(error), 1)
    except KeyboardInterrupt:
        shutdown.leave_by(signal.SIGINT)
    except BaseException:
        leave(1, traceback.format_exc().rstrip())


def leave(status: int, message: str = '') -> NoReturn:
    """Ends the process as `shutdown.leave`, after writing what was printed."""
    with contextlib.suppress(OSError):  # A closed pipe, which the message may be about.
        sys.stdout.flush()
    shutdown.leave(status, message)


def _status(end: SystemExit) -> int:
    """The exit status that SystemExit asks for, whose text goes to stderr if it has one."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _start(main: Callable[[], None]) -> None:
    compilation_cache.enable()
    main()


def _parse(arguments: Sequence[str]) -> list[str]:
    """Reads flags and config; whatever is wrong with them is the user's to mend."""
    try:
        _check_regular(arguments)
        rest = flags.FLAGS(list(arguments))
        if 'config' in flags.FLAGS:
            _check_config_file()
            _check_overrides()
    except SystemExit:  # --help, after printing it; absl would report failure.
        sys.exit(0)
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        # An override loads the file before it was looked for; the last line says what was tried.
        _fail(f'--config: {str(error).splitlines()[-1].strip()} (from {os.getcwd()}).', 2)
    except SyntaxError as error:
        _fail(f'--config: that file is no Python: {error}.', 2)
    except (KeyError, AttributeError) as error:
        text = ' '.join(_innermost(error).split())
        if 'get_config' in text:
            _fail('--config: that file defines no get_config, so it is no config.', 2)
        _fail(f'The config does not have the field of an override: {text}', 2)
    except (flags.Error, TypeError, ValueError) as error:
        section = re.match(r'flag --(\S+?)=.* as a ConfigDict', str(error))
        if section:
            _fail(f'{section[1]} has fields: set each as --{section[1]}.FIELD=VALUE.', 2)
        # What goes wrong within a config file comes as the text of its traceback: a mistake that
        # the user can mend is told in its last line, a bug in the file needs all of it.
        _fail(str(error).rsplit('UserError: ')[-1], 2)
    except RecursionError:  # From absl's search for flags with nearly the same name.
        _fail('A flag on the command line is too long to be one.', 2)
    if len(rest) > 1:
        _fail(f'Stray words on the command line: {" ".join(rest[1:])}; write --flag=value.', 2)
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    return rest


def _check_regular(arguments: Sequence[str]) -> None:
    """Checks the files that are read while flags are parsed: a pipe would block for ever."""
    words = [part for argument in arguments for part in argument.split('=', 1)]
    for flag, value in itertools.pairwise(words):
        name, path = flag.lstrip('-'), pathlib.Path(value.split(':')[0])
        if name in ('config', 'flagfile') and _exists(path) and not path.is_file():
            raise UserError(f'--{name}: {path} is not a regular file.')


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # A name that is too long, or holds a null character.
        return False


def _innermost(error: BaseException) -> str:
    """The text of the first error in a chain that was wrapped argument by argument."""
    text = error.args[0] if error.args else error
    return _innermost(text) if isinstance(text, BaseException) and text is not error else str(text)


def _check_config_file() -> None:
    if flags.FLAGS['config'].value is None and not flags.FLAGS['config'].present:
        raise UserError('--config is required, such as --config=configs/quickstart.py.')
    path = _config_path()
    if not pathlib.Path(path).is_file():
        raise UserError(f'--config: there is no file {path} (looked for in {os.getcwd()}).')


def _config_path() -> str:
    return config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]


def _check_overrides() -> None:
    # The method has set the adapter's fields by now, and would only be another name for them.
    method = config_flags.get_override_values(flags.FLAGS['config']).get('method')
    if method is not None:
        raise UserError(
            f'config.method cannot be overridden: write --config={_config_path()}:{method}.'
        )


def _fail(message: str, status: int) -> NoReturn:
    # What a user has typed may hold line breaks; only a bug's traceback has more than one line.
    if 'Traceback' not in message:
        message = ' '.join(message.splitlines())
    leave(status, buckets.readable(message.strip()))
