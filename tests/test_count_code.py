"""The counts of `count_code.py`, and their limits."""

from tests.count_code import code_lines, leaf_literals, literals_outside_adapters


def test_few_places_outside_adapters_know_the_name_of_a_leaf():
    assert sum(map(len, literals_outside_adapters().values())) < 10


def test_comments_docstrings_and_blank_lines_are_not_code(tmp_path):
    path = tmp_path / 'module.py'
    path.write_text(
        '"""A module.\n\nText."""\n\n# A comment.\nX = (\n    1,  # One.\n)\nY = "up"\n'
    )
    assert code_lines(path) == 4
    assert leaf_literals(path) == [9]
