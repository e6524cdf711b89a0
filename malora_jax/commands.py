"""The program `malora`, which runs the commands of the package `experiments` from any directory.

`python -m experiments.train …` needs a checkout as the working directory. `malora train …` is the
same command without this need. `experiments` and `configs` are generic names, which other projects
use too. A wheel therefore holds the two packages in malora_jax/bundled, and only `malora` adds this
directory to the import path.
"""

import ast
import os
import pathlib
import re
import runpy
import sys
import textwrap

from malora_jax import errors

# In the order of `malora --help`. The comparison with other systems, experiments.peers, needs a
# checkout.
COMMANDS = (
    *('train', 'evaluate', 'generate', 'serve', 'export', 'analyze', 'harness', 'plan', 'prepare'),
    *('sweep', 'train_together', 'benchmark', 'scaling', 'ultralink'),
)
_IN_TEXT = re.compile(rf'(?<![\w./])(?:python -m )?experiments\.({"|".join(COMMANDS)})\b')
# Whether this process is `malora`, rather than `python -m experiments.COMMAND`.
_is_malora = False


def main() -> None:
    """Run the command that the first argument names; without arguments, print all commands."""
    global _is_malora
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(_help())
        return
    if name not in COMMANDS:
        sys.stderr.write(f'{errors.unknown_name("command", name, COMMANDS)}\n')
        sys.exit(2)
    _is_malora = True
    sys.path.insert(0, str(root()))
    # As while `python -m` looks for a module: experiments/__init__.py then handles signals.
    sys.argv[:] = ['-m', *sys.argv[2:]]
    runpy.run_module(f'experiments.{name}', run_name='__main__', alter_sys=True)


def root() -> pathlib.Path:
    """Return the directory that holds the packages `experiments` and `configs`."""
    bundled = pathlib.Path(__file__).parent / 'bundled'
    return bundled if bundled.is_dir() else pathlib.Path(__file__).parents[1]


def find_config(path: str) -> str:
    """Return the path under which a config file can be read.

    Args:
        path: Path of the file, relative to the working directory. If there is no such file,
            configs/NAME.py is the config of this name that comes with malora_jax.
    """
    shipped = str(root() / path)
    is_shipped = path.startswith('configs/') and os.path.isfile(shipped)
    return shipped if is_shipped and not os.path.isfile(path) else path


def command_line(name: str) -> list[str]:
    """Return the first words of a command line that starts a command in another process.

    Args:
        name: Name of the command, such as 'train'.
    """
    module = ['malora_jax', name] if _is_malora else [f'experiments.{name}']
    return [sys.executable, '-m', *module]


def spell(text: str) -> str:
    """Return a text in which commands are spelled as the user types them.

    Args:
        text: Text that names commands as `python -m experiments.COMMAND`. If this process is
            `malora`, they become `malora COMMAND`.
    """
    if not _is_malora:
        return text
    text = _IN_TEXT.sub(r'malora \1', text)
    return text.replace('python -c "from configs', f'PYTHONPATH={root()} python -c "from configs')


def _help() -> str:
    """Return the names and purposes of all commands as text."""
    width = max(map(len, COMMANDS))
    rows = [f'  {name:{width}}  {_purpose(name)}' for name in COMMANDS]
    return '\n'.join(
        [
            'Usage: malora COMMAND --flag=value …',
            '',
            *(textwrap.fill(row, 80, subsequent_indent=' ' * (width + 4)) for row in rows),
            '',
            '`malora COMMAND --help` describes a command.',
            f'--config=configs/NAME.py names a config of yours, or one in {root() / "configs"}.',
        ]
    )


def _purpose(name: str) -> str:
    """Return the first line of a command's docstring, without loading the command."""
    path = root() / 'experiments' / f'{name}.py'
    if not path.is_file():
        path = path.with_suffix('') / '__main__.py'
    return (ast.get_docstring(ast.parse(path.read_text('utf-8'))) or '').partition('\n')[0]
