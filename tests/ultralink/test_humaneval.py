"""Translated problems, damaged like the released ones, and the damage that is found."""

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.evaluation import humaneval
from tests.helpers.paths import FIXTURES
from tests.ultralink.helpers import run, write_rows

DOUBLE = {
    'task_id': 'HumanEval/0',
    'prompt': (
        'from typing import List\n\n\ndef double_all(numbers: List[int]) -> List[int]:\n'
        '    """ Return a list with each number doubled.\n'
        '    >>> double_all([1, 2])\n    [2, 4]\n    """\n'
    ),
    'entry_point': 'double_all',
    'canonical_solution': '    return [2 * number for number in numbers]\n',
    'test': 'def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n',
}
ODD = {
    'task_id': 'HumanEval/1',
    'prompt': (
        '\ndef is_odd(n):\n    """ Tell whether a number is odd.\n    >>> is_odd(3)\n    True\n'
        '    """\n    '
    ),
    'entry_point': 'is_odd',
    # Continues the last line of the prompt.
    'canonical_solution': 'return n % 2 == 1\n',
    'test': 'def check(candidate):\n    assert candidate(3)\n    assert not candidate(4)\n',
}
PROSE = {
    'Return a list with each number doubled.': 'Devuelve una lista con cada número duplicado.',
    'Tell whether a number is odd.': 'Indica si un número es impar.',
}


def translated(problem, *changes):
    prompt = problem['prompt']
    for old, new in (*PROSE.items(), *changes):
        prompt = prompt.replace(old, new)
    return {**problem, 'prompt': prompt}


def write(path, rows):
    originals = write_rows(path / 'originals.jsonl', [DOUBLE, ODD])
    return originals, write_rows(path / 'translated.jsonl', rows)


def diagnose(path, rows):
    return humaneval.diagnose(*write(path, rows), workers=1)


def test_a_clean_file_and_lost_endings(tmp_path):
    rows = [translated(ODD), translated(DOUBLE)]
    rows = [{**row, 'prompt': row['prompt'].rstrip()} for row in rows]
    found = diagnose(tmp_path, rows)
    assert [each.task for each in found] == ['HumanEval/0', 'HumanEval/1']
    assert all(each.restored and each.passes and not each.faults for each in found)
    assert found[1].prompt.endswith('"""\n    ')
    assert '2 of 2 canonical solutions pass' in humaneval.format_report(found)
    assert '2 of 2 prompts had lost the white space' in humaneval.format_report(found)


def test_damaged_rows_are_named(tmp_path):
    """Faults: a translated entry point, and a quotation mark that ends the docstring early."""
    rows = [
        translated(DOUBLE, ('def double_all', 'def duplicar_todos')),
        translated(ODD, ('un número', 'un """número""" o')),
    ]
    found = diagnose(tmp_path, rows)
    assert not any(each.passes for each in found)
    text = humaneval.format_report(found)
    assert (
        'translated.jsonl line 1 (HumanEval/0): tree: code outside of docstrings is not the same; '
        "entry point: the prompt does not define 'double_all' (new functions: duplicar_todos); "
    ) in text
    assert 'translated.jsonl line 2 (HumanEval/1): syntax: ' in text
    assert '0 of 2 canonical solutions pass' in text
    assert '1 rows with a fault in: entry point' in text
    assert '0 of 2 rows have no fault.' in text


@pytest.mark.parametrize(
    'old, new, kinds',
    [
        ('', '', set()),
        ('List[int]) -> List[int]', 'List[int]) -> Lista[int]', {'tree'}),
        ('(numbers: List[int])', '(numeros: List[int])', {'tree'}),
        ('from typing import List\n', 'from typing import List\nimport os\n', {'tree'}),
        ('def double_all', '# Un comentario.\ndef double_all', set()),
        ('double_all(numbers', 'duplicar(numbers', {'tree', 'entry point'}),
        ('[2, 4]\n', '[2; 4]\n', {'examples'}),
        ('>>> double_all', '>>> duplicar', {'examples'}),
        ('    >>> double_all([1, 2])\n    [2, 4]\n', '', {'examples'}),
        ('""" ', '""" “', set()),
        ('    """\n', '', {'syntax'}),
        ('    """ ', '    f""" ', {'docstring', 'tree'}),
    ],
)
def test_each_kind_of_damage(tmp_path, old, new, kinds):
    row = translated(DOUBLE, (old, new)) if old else translated(DOUBLE)
    assert bool(old) == (row != translated(DOUBLE))
    (problem, _), (made,) = (list(humaneval.read_rows(path)) for path in write(tmp_path, [row]))
    assert set(humaneval.static_faults(problem, made, row['prompt'])) == kinds


def test_another_entry_point_in_its_field(tmp_path):
    row = {**translated(DOUBLE), 'entry_point': 'duplicar'}
    (problem, _), (made,) = (list(humaneval.read_rows(path)) for path in write(tmp_path, [row]))
    assert humaneval.static_faults(problem, made, row['prompt']) == {
        'entry point': "'entry_point' is 'duplicar', not 'double_all'"
    }


@pytest.mark.parametrize(
    'rows, message',
    [
        ([DOUBLE], 'lacks 1 problems, such as HumanEval/1'),
        ([DOUBLE, DOUBLE], 'line 2: an earlier row has the same task_id HumanEval/0'),
        ([DOUBLE, ODD, {**ODD, 'task_id': 'HumanEval/7'}], 'file has no problem HumanEval/7'),
        ([DOUBLE, {**ODD, 'prompt': None}], "line 2 has no 'prompt'"),
    ],
)
def test_a_file_that_cannot_be_checked(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        diagnose(tmp_path, rows)


def test_originals_that_are_none(tmp_path):
    broken = write_rows(tmp_path / 'broken.jsonl', [{**DOUBLE, 'prompt': 'def duplicar(:'}])
    fine = write_rows(tmp_path / 'fine.jsonl', [DOUBLE])
    empty = write_rows(tmp_path / 'empty.jsonl', [])
    with pytest.raises(UserError, match=r'broken\.jsonl line 1 does not parse as .*: invalid'):
        humaneval.diagnose(broken, fine, workers=1)
    with pytest.raises(UserError, match=r'empty\.jsonl has no problems'):
        humaneval.diagnose(empty, empty, workers=1)


def test_docstrings_in_another_language_are_refused(tmp_path):
    prose = 'Devuelve una lista con cada número de la lista original duplicado, en el mismo orden.'
    rows = [
        translated(each, (text, prose))
        for each, text in zip((DOUBLE, ODD), PROSE.values(), strict=True)
    ]
    originals, path = write(tmp_path, rows)
    assert not any(each.faults for each in humaneval.diagnose(originals, path, language='es'))
    message = (
        r'translated.jsonl: the docstrings are not in French \(fr\): .* es .*; set --language=es'
    )
    with pytest.raises(UserError, match=message):
        humaneval.diagnose(originals, path, language='fr')


def test_docstrings_in_a_language_of_the_user(tmp_path):
    prose = 'Restituisce una lista con ogni numero della lista originale raddoppiato, in ordine.'
    italian = [
        translated(each, (text, prose))
        for each, text in zip((DOUBLE, ODD), PROSE.values(), strict=True)
    ]
    originals, path = write(tmp_path, italian)
    own = f'--language={FIXTURES}/ultralink_italian.toml'
    done = run('check_humaneval', own, f'--input={path}', f'--originals={originals}')
    assert (done.returncode, done.stderr) == (0, '')
    write(tmp_path, [DOUBLE, {**ODD, 'prompt': ODD['prompt'].replace('Tell', 3 * 'Please tell ')}])
    done = run('check_humaneval', own, f'--input={path}', f'--originals={originals}')
    assert done.returncode == 2 and 'are not in Italian (it): the language is en' in done.stderr
    done = run('check_humaneval', '--language=/tmp/it', f'--input={path}', '--originals=none')
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert done.stderr.endswith('(The path of the file of a language must end in .toml.)\n')


def test_the_prose_of_a_docstring_has_no_examples():
    assert humaneval.docstring_prose(DOUBLE['prompt']) == 'Return a list with each number doubled.'
    assert humaneval.docstring_prose(ODD['prompt']) == 'Tell whether a number is odd.'
    assert humaneval.docstring_prose('def f(:') == ''
