"""Write everything in the documentation that comes from the code or from stored results.

`make docs` runs this before it builds the site, and continuous integration fails if a committed
file differs from what this writes. On every page, it fills two kinds of marks:

    <!-- generated: NAME -->…<!-- end -->      a block, made by the function PARTS[NAME]
    <!-- value: RECORD[key]:.2f -->…<!-- end -->  a number of a record in docs/results, formatted by
                                               str.format

It also writes the pages on config fields and commands, the pictures, and what all notebooks share.

    python -m docs.generate
"""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from docs import (
    draw_layer,
    fair_hypotheses,
    fair_number_of_tasks,
    fair_repetitions,
    fair_why,
    notebooks,
    pictures_fair,
    pictures_scale,
    pictures_training,
    records,
    reference_pages,
    repository,
    tables_fair,
    tables_scale,
    tables_training,
    tables_ultralink,
    tables_use,
)
from malora_jax.frames import call_with_room

DOCS = repository.ROOT / 'docs'
_MARK = re.compile(r'<!-- (generated|value): (.*?) -->(.*?)<!-- end -->', re.DOTALL)


def main() -> None:
    """Write all generated pages, parts of pages, and pictures."""
    reference = DOCS / 'reference'
    (reference / 'config.md').write_text(reference_pages.config_page(), 'utf-8')
    (reference / 'commands.md').write_text(reference_pages.commands_page(), 'utf-8')
    draw_layer.main()
    notebooks.main()
    pictures = pictures_training.PICTURES | pictures_scale.PICTURES | pictures_fair.PICTURES
    for name, draw in pictures.items():
        draw(DOCS / 'images' / name)
    values = {name: records.load(name)['values'] for name in records.names()}
    computed = tables_training.VALUES | tables_scale.VALUES | tables_fair.VALUES | fair_why.VALUES
    computed |= fair_repetitions.VALUES | fair_number_of_tasks.VALUES
    values |= {name: compute() for name, compute in computed.items()}
    parts = tables_training.PARTS | tables_use.PARTS | tables_scale.PARTS | tables_ultralink.PARTS
    parts |= tables_fair.PARTS | fair_hypotheses.PARTS | fair_number_of_tasks.PARTS
    parts |= fair_repetitions.PARTS | fair_why.PARTS
    parts['get the code'] = repository.get_the_code
    for name in records.names():
        parts[f'conditions {name}'] = functools.partial(records.conditions, name)
    for path in pages():
        path.write_text(fill(path.read_text('utf-8'), path.name, values, parts), 'utf-8')


def pages() -> list[pathlib.Path]:
    """Return the README and all Markdown pages of the documentation."""
    return [repository.ROOT / 'README.md', *sorted(DOCS.glob('*.md')), *sorted(DOCS.glob('*/*.md'))]


def fill(
    text: str, page: str, values: Mapping[str, Any], parts: Mapping[str, Callable[[], str]]
) -> str:
    """Return the text of a page with current blocks and numbers.

    Args:
        text: Markdown with marks.
        page: Name of the page, for messages.
        values: Values of the records, by name of the record.
        parts: Functions that return the text of a block, by name of the block.

    Raises:
        ValueError: A mark names a block, a record or a key that does not exist.
    """

    def filled(match: re.Match[str]) -> str:
        kind, name, _ = match.groups()
        try:
            new = ('{' + name + '}').format(**values) if kind == 'value' else parts[name]()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f'{page}: the mark "{kind}: {name}" has no value: {error!r}') from None
        separator = '' if kind == 'value' else '\n\n'
        return f'<!-- {kind}: {name} -->{separator}{new}{separator}<!-- end -->'

    return _MARK.sub(filled, text)


if __name__ == '__main__':
    call_with_room(main)
