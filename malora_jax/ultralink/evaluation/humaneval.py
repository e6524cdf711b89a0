"""Validation of HumanEval with translated docstrings: is each row still the original problem?

A translation may change only the prose of docstrings. First, the white space at the end of the
prompt is restored, because an appended solution may not parse without it. A row has no fault if:

- The translated prompt, followed by the original canonical solution, parses as Python.
- The code outside of docstrings is the same as in the original.
- The prompt defines the function that the test calls (the entry point).
- The doctest examples in docstrings are unchanged.
- The translated prompt, followed by the original canonical solution, passes the original test.
"""

import ast
import collections
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from malora_jax.data.file_rows import Row, read_rows
from malora_jax.errors import UserError
from malora_jax.evaluation import code_execution
from malora_jax.progress import ProgressBar
from malora_jax.ultralink.evaluation.file_language import check_file_language
from malora_jax.ultralink.shards import text_field

# Kinds of faults, in the order of the report.
FAULTS = ('syntax', 'docstring', 'tree', 'entry point', 'examples', 'solution')
_ENDING = re.compile(r'\s*\Z')
# A doctest example: a line of input and its output, up to an empty line or the next `>>>`.
_EXAMPLE = re.compile(r'^[ \t]*>>>.*(?:\n(?![ \t]*(?:>>>|$)).*)*', re.MULTILINE)
_DOCSTRING_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


class Diagnosis(NamedTuple):
    """Result of the checks of one translated row.

    Attributes:
        task: Id of the problem.
        location: File and line of the row, for messages.
        prompt: Prompt of the row, with the white space at its end restored.
        restored: Whether the white space had to be restored.
        faults: Human-readable description of each fault, by kind.
    """

    task: str
    location: str
    prompt: str
    restored: bool
    faults: Mapping[str, str]

    @property
    def passes(self) -> bool:
        """True if the canonical solution after the translated prompt passes the original test."""
        return 'solution' not in self.faults


def diagnose(
    originals: pathlib.Path,
    translated: pathlib.Path,
    *,
    language: str = '',
    workers: int = os.cpu_count() or 1,
) -> list[Diagnosis]:
    """Check a translated file row by row.

    Args:
        originals: File of the original HumanEval problems.
        translated: File of their translations, in any order.
        language: Code of the language of the translations; '' = not checked.
        workers: Number of canonical solutions that run at the same time.

    Returns:
        Diagnosis of each row, in the order of the original problems.

    Raises:
        UserError: A file cannot be read, a row lacks a field, the files have different problems, or
            the docstrings are in another language.
        OSError: The sandbox does not work.
    """
    problems, rows = _by_task(originals), _by_task(translated)
    _check_same(problems, rows, translated)
    if language:
        prose = (docstring_prose(text_field(row, 'prompt')) for row in rows.values())
        check_file_language(prose, language, f'{translated}: the docstrings')
    pairs = [(problem, rows[task]) for task, problem in problems.items()]
    prompts = [
        restore_trailing_space(text_field(row, 'prompt'), text_field(problem, 'prompt'))
        for problem, row in pairs
    ]
    with ProgressBar('HumanEval', len(pairs), 'solution', delay=1.0) as bar:
        bar.update(0)
        outcomes = code_execution.score_completions(
            [
                code_execution.Problem(
                    prompt, text_field(problem, 'test'), text_field(problem, 'entry_point')
                )
                for (problem, _), prompt in zip(pairs, prompts, strict=True)
            ],
            [[text_field(problem, 'canonical_solution')] for problem, _ in pairs],
            workers=workers,
            advance=bar.advance,
        )
    diagnoses = []
    for (problem, row), prompt, (outcome,) in zip(pairs, prompts, outcomes, strict=True):
        faults = static_faults(problem, row, prompt)
        if not outcome.passed:
            faults['solution'] = outcome.reason
        restored = prompt != text_field(row, 'prompt')
        diagnoses.append(
            Diagnosis(text_field(row, 'task_id'), row.location, prompt, restored, faults)
        )
    return diagnoses


def restore_trailing_space(prompt: str, original: str) -> str:
    """Return a prompt with the white space at its end replaced by that of the original prompt."""
    return prompt.rstrip() + (_ENDING.search(original) or [''])[0]


def docstring_prose(prompt: str) -> str:
    """Return the docstrings of a prompt without their doctest examples and indentation.

    A prompt that does not parse has none.
    """
    try:
        docstrings = _pop_docstrings(ast.parse(prompt.rstrip() + '\n    pass\n'))
    except (SyntaxError, ValueError):
        return ''
    return '\n'.join(_EXAMPLE.sub('', each).strip() for each in docstrings)


def static_faults(problem: Row, row: Row, prompt: str) -> dict[str, str]:
    """Return the faults that are found without running any code, by kind.

    Args:
        problem: Row of the original problem.
        row: Translated row.
        prompt: Translated prompt, with the white space at its end restored.

    Raises:
        UserError: A field is missing, or the original problem does not parse.
    """
    solution, name = text_field(problem, 'canonical_solution'), text_field(problem, 'entry_point')
    faults = {}
    if text_field(row, 'entry_point') != name:
        faults['entry point'] = f"'entry_point' is {row.fields['entry_point']!r}, not {name!r}"
    try:
        before = ast.parse(text_field(problem, 'prompt') + solution)
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f'{problem.location} does not parse as an original HumanEval problem: {error}.'
        ) from error
    try:
        after = ast.parse(prompt + solution)
    except (SyntaxError, ValueError) as error:
        return {**faults, 'syntax': str(error)}
    if name not in _defined(after):
        names = ', '.join(sorted(_defined(after) - _defined(before))) or 'none'
        faults['entry point'] = f'the prompt does not define {name!r} (new functions: {names})'
    original_docs, translated_docs = _pop_docstrings(before), _pop_docstrings(after)
    if len(original_docs) != len(translated_docs):
        faults['docstring'] = f'{len(translated_docs)} docstrings, not {len(original_docs)}'
    elif _examples(original_docs) != _examples(translated_docs):
        changed = [new for new in _examples(translated_docs) if new not in _examples(original_docs)]
        faults['examples'] = f'changed: {changed[0]}' if changed else 'some are missing'
    if ast.dump(before) != ast.dump(after):
        faults['tree'] = 'code outside of docstrings is not the same'
    return faults


def format_report(diagnoses: Sequence[Diagnosis]) -> str:
    """Return the report as text: a line for each row that has faults, then the counts."""
    lines = [
        f'{each.location} ({each.task}): '
        + '; '.join(f'{kind}: {each.faults[kind]}' for kind in FAULTS if kind in each.faults)
        for each in diagnoses
        if each.faults
    ]
    kinds = collections.Counter(kind for each in diagnoses for kind in each.faults)
    restored = sum(each.restored for each in diagnoses)
    passing = sum(each.passes for each in diagnoses)
    return '\n'.join(
        [
            *lines,
            f'{restored} of {len(diagnoses)} prompts had lost the white space at their end.',
            f'{passing} of {len(diagnoses)} canonical solutions pass after it is restored.',
            *(f'{kinds[kind]} rows with a fault in: {kind}' for kind in FAULTS if kinds[kind]),
            f'{sum(not each.faults for each in diagnoses)} of {len(diagnoses)} rows have no fault.',
        ]
    )


def _by_task(path: pathlib.Path) -> dict[str, Row]:
    """Return the rows of a file by their `task_id`.

    Raises:
        UserError: The file cannot be read or has no rows, or two rows have the same `task_id`.
    """
    rows: dict[str, Row] = {}
    for row in read_rows(path):
        task = text_field(row, 'task_id')
        if task in rows:
            raise UserError(f'{row.location}: an earlier row has the same task_id {task}.')
        rows[task] = row
    if not rows:
        raise UserError(f'{path} has no problems.')
    return rows


def _check_same(
    problems: Mapping[str, Row], rows: Mapping[str, Row], translated: pathlib.Path
) -> None:
    """Check that both files have the same problems.

    Raises:
        UserError: A problem is unknown or missing.
    """
    missing, unknown = problems.keys() - rows.keys(), rows.keys() - problems.keys()
    if unknown:
        raise UserError(
            f'{rows[min(unknown)].location}: the original file has no problem {min(unknown)}.'
        )
    if missing:
        raise UserError(f'{translated} lacks {len(missing)} problems, such as {min(missing)}.')


def _defined(tree: ast.Module) -> set[str]:
    """Return the names of the functions that a module defines."""
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _pop_docstrings(tree: ast.Module) -> list[str]:
    """Remove the docstrings from a tree, and return them in order."""
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, _DOCSTRING_NODES) and ast.get_docstring(node) is not None:
            docstrings.append(ast.get_docstring(node) or '')
            del node.body[0]
    return docstrings


def _examples(docstrings: Iterable[str]) -> list[str]:
    """Return the doctest examples (`>>>`) in docstrings, with white space normalized."""
    return [
        ' '.join(match[0].split())
        for docstring in docstrings
        for match in _EXAMPLE.finditer(docstring)
    ]
