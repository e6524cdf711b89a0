"""Draw docstrings and help texts for readers who judge whether they understand them at once.

`python -m tests.draw_texts --seed=1` prints 60 docstrings of malora_jax, experiments and configs,
each with its signature, and 30 help texts of flags. The seed decides which, so that a result in
docs/reader_questions.md can be repeated.
"""

import argparse
import ast
import random
from collections.abc import Iterator

from absl import flags

from experiments.ultralink.stage_flags import StageFlags
from malora_jax.ultralink.stages import STAGES
from tests.helpers.paths import ROOT

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    """Print the drawn texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seed', type=int, required=True, help='Random seed of the draw.')
    parser.add_argument('--docstrings', type=int, default=60, help='Number of docstrings.')
    parser.add_argument('--flags', type=int, default=30, help='Number of help texts.')
    given = parser.parse_args()
    rng = random.Random(given.seed)
    drawn = rng.sample(sorted(docstrings()), given.docstrings)
    drawn += rng.sample(sorted(help_texts()), given.flags)
    for number, text in enumerate(drawn, start=1):
        print(f'[{number}] {text}\n')


def docstrings() -> Iterator[str]:
    """Yield the file, the signature and the docstring of every module, class and function."""
    for folder in ('malora_jax', 'experiments', 'configs'):
        for path in (ROOT / folder).rglob('*.py'):
            tree = ast.parse(path.read_text('utf-8'))
            for signature, text in _documented(tree, ''):
                yield f'{path.relative_to(ROOT)}\n{signature}\n"""{text}"""'


def help_texts() -> Iterator[str]:
    """Yield the command, the flag and the help text of every flag."""
    for path in (ROOT / 'experiments').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith('flags.DEFINE'):
                texts = [
                    argument.value
                    for argument in node.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                ]
                if len(texts) > 1:
                    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
                    command = f'python -m {module.removesuffix(".__main__")} --{texts[0]}'
                    yield f'{command}\n{max(texts[1:], key=len)}'
    for stage in STAGES.values():
        registry = flags.FlagValues()
        StageFlags(stage, registry)
        for name in registry:
            text = registry[name].help
            yield f'python -m experiments.ultralink {stage.name} --{name}\n{text}'


def _documented(node: ast.AST, scope: str) -> Iterator[tuple[str, str]]:
    """Yield the signature and the docstring of a node and of the definitions within it."""
    signature, name = 'module', ''
    if isinstance(node, ast.ClassDef):
        name = f'{scope}{node.name}'
        signature = f'class {name}'
    elif isinstance(node, FUNCTIONS):
        name = f'{scope}{node.name}'
        signature = f'def {name}({ast.unparse(node.args)})'
    if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
        text = ast.get_docstring(node)
        if text:
            yield signature, text
    for child in ast.iter_child_nodes(node):
        yield from _documented(child, f'{name}.' if name else scope)


if __name__ == '__main__':
    main()
