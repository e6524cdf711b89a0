"""Count lines of code by package, and the names of adapter leaves that occur outside `adapters/`.

Run `python -m tests.count_code` from the root of the repository.
"""

import ast
import collections
import io
import pathlib
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent
LEAVES = {'router', 'down', 'shared_down', 'core', 'up', 'shared_up', 'magnitude'}
# Linears of the base model have two of these names; such places are named here, by file.
_LINEARS = {'malora_jax/models/decoder.py', 'malora_jax/models/config.py'}
_SKIPPED = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def sources(*folders: str) -> Iterator[pathlib.Path]:
    """Yield the Python files of some folders of the repository."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob('*.py'))


def code_lines(path: pathlib.Path) -> int:
    """Count the lines that hold code, without comments, docstrings and blank lines."""
    text = path.read_text()
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SKIPPED:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def leaf_literals(path: pathlib.Path) -> list[int]:
    """Return the numbers of the lines with a string literal that is the name of a leaf."""
    return sorted(
        {
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value in LEAVES
        }
    )


def literals_outside_adapters() -> dict[str, list[int]]:
    """Return the lines with names of leaves outside `adapters/`, by file."""
    found = {}
    for path in sources('malora_jax', 'experiments', 'configs'):
        name = str(path.relative_to(ROOT))
        if not name.startswith('malora_jax/adapters/') and name not in _LINEARS:
            found[name] = leaf_literals(path)
    return {name: lines for name, lines in found.items() if lines}


def lines_by_package() -> dict[str, int]:
    """Count lines of code by package of `malora_jax`, and for the other folders."""
    counts: collections.Counter[str] = collections.Counter()
    for path in sources('malora_jax', 'experiments', 'configs', 'tests'):
        parts = path.relative_to(ROOT).parts
        package = '/'.join(parts[: 2 if parts[0] == 'malora_jax' and len(parts) > 2 else 1])
        counts[package] += code_lines(path)
    return dict(counts)


def main() -> None:
    """Print all counts."""
    for package, count in sorted(lines_by_package().items()):
        print(f'{count:7,}  {package}')
    literals = literals_outside_adapters()
    print(f'{sum(map(len, literals.values())):7,}  lines with names of leaves outside adapters/:')
    for name, lines in literals.items():
        print(f'         {name}: {", ".join(map(str, lines))}')


if __name__ == '__main__':
    main()
