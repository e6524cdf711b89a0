"""Measure the structure of the code: lines by package, upward imports and readers of runs.

It also finds the names of adapter leaves outside `adapters/`. Run `python -m tests.count_code`, or
add the path of another checkout to measure that one.
"""

import ast
import collections
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Code that presents results, under its present and its former paths.
_PRESENTATION = (
    *('malora_jax/analysis/', 'malora_jax/runs/', 'malora_jax/statistics.py'),
    *('malora_jax/markdown.py', 'malora_jax/benchmark/plots.py', 'malora_jax/export/static.py'),
    *(f'malora_jax/sweeps/{name}.py' for name in ('found', 'report', 'plots')),
    *(f'experiments/{name}.py' for name in ('analyze', 'compare', 'table')),
)
# Functions that read the files of a finished run.
_READERS = {'read_results', 'read_metrics', 'answer_rows', 'read_answer_rows'}
LEAVES = {'router', 'down', 'shared_down', 'core', 'up', 'shared_up', 'magnitude'}
# Linears of the base model share two of these names, so these files are exempt.
_LINEARS = {'malora_jax/models/decoder.py', 'malora_jax/models/config.py'}
_SKIPPED = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def sources(root: pathlib.Path, *folders: str) -> Iterator[tuple[str, pathlib.Path]]:
    """Yield the Python files in some folders of a checkout, with their relative paths."""
    for folder in folders:
        for path in sorted((root / folder).rglob('*.py')):
            yield path.relative_to(root).as_posix(), path


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
    """Return the numbers of the lines with a string literal that is an adapter leaf's name."""
    return sorted(
        {
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value in LEAVES
        }
    )


def literals_outside_adapters(root: pathlib.Path = ROOT) -> dict[str, list[int]]:
    """Return the lines with names of leaves outside `adapters/`, by file."""
    found = {
        name: leaf_literals(path)
        for name, path in sources(root, 'malora_jax', 'experiments', 'configs')
        if not name.startswith('malora_jax/adapters/') and name not in _LINEARS
    }
    return {name: lines for name, lines in found.items() if lines}


def layers(root: pathlib.Path = ROOT) -> list[str]:
    """Return the packages in the table of CONTRIBUTING.md, the highest first."""
    text = (root / 'CONTRIBUTING.md').read_text('utf-8')
    return re.findall(r'^ {4}((?:malora_jax|experiments|configs)\S*) {2,}\S', text, re.MULTILINE)


def upward_imports(root: pathlib.Path, table: list[str]) -> list[str]:
    """Return the imports from a higher layer, as 'FILE:LINE imports MODULE'.

    Args:
        root: Root of the checkout.
        table: Packages, the highest first; the last entry covers the modules next to them.
    """
    found = []
    for name, path in sources(root, 'malora_jax', 'experiments', 'configs'):
        if name == 'malora_jax/__init__.py':  # The package's `load` comes from a higher layer.
            continue
        level = _level(name.removesuffix('.py'), table)
        for node in ast.walk(ast.parse(path.read_text())):
            for module in _imported(node):
                if _level(module.replace('.', '/'), table) < level:
                    found.append(f'{name}:{node.lineno} imports {module}')
    return found


def _level(name: str, table: list[str]) -> int:
    """Return the number of a module's layer, counted from the top; other modules are the lowest."""
    owners = [n for n, package in enumerate(table) if f'{name}/'.startswith(f'{package}/')]
    return min(owners, default=len(table))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f'{node.module}.{alias.name}' for alias in node.names]
    return []


def readers_of_runs(root: pathlib.Path = ROOT) -> list[str]:
    """Return the classes and functions outside training that read the files of finished runs."""
    found = []
    for name, path in sources(root, 'malora_jax', 'experiments'):
        if name.startswith('malora_jax/training/'):
            continue
        for node in ast.parse(path.read_text()).body:
            uses = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            uses |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and uses & _READERS:
                found.append(f'{name}: {node.name}')
    return found


def lines_by_package(root: pathlib.Path = ROOT) -> dict[str, int]:
    """Count lines of code by package of `malora_jax`, for the other folders, and by purpose."""
    counts: collections.Counter[str] = collections.Counter()
    for name, path in sources(root, 'malora_jax', 'experiments', 'configs', 'tests'):
        parts = name.split('/')
        package = '/'.join(parts[: 2 if parts[0] == 'malora_jax' and len(parts) > 2 else 1])
        lines = code_lines(path)
        counts[package] += lines
        counts['all but tests'] += lines if parts[0] != 'tests' else 0
        counts['presentation of results'] += lines if name.startswith(_PRESENTATION) else 0
        counts['experiments/ultralink'] += lines if 'experiments/ultralink/' in name else 0
    return dict(counts)


def main(root: pathlib.Path) -> None:
    """Print all counts of a checkout."""
    for package, count in sorted(lines_by_package(root).items()):
        print(f'{count:7,}  {package}')
    for title, places in (
        ('imports from a higher layer', upward_imports(root, layers())),
        ('readers of finished runs', readers_of_runs(root)),
    ):
        print('\n         '.join([f'{len(places):7,}  {title}', *places]))
    literals = literals_outside_adapters(root)
    print(f'{sum(map(len, literals.values())):7,}  lines with names of leaves outside adapters/:')
    for name, lines in literals.items():
        print(f'         {name}: {", ".join(map(str, lines))}')


if __name__ == '__main__':
    main(pathlib.Path(*sys.argv[1:2]).resolve() if sys.argv[1:] else ROOT)
