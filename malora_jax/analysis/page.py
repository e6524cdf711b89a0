"""Blocks and sections of a report, and their rendering as HTML and Markdown."""

import base64
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jinja2

from malora_jax import files, markdown

NO_VALUE = '–'


class Italic(str):
    """Text in italics, such as a number from the paper."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph of text."""

    text: str
    kind: ClassVar[str] = 'text'


@dataclasses.dataclass(frozen=True)
class BulletList:
    """A bulleted list of short paragraphs.

    Attributes:
        items: The paragraphs.
        title: Heading above the list; '' for none.
    """

    items: Sequence[str]
    title: str = ''
    kind: ClassVar[str] = 'items'


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file with its caption.

    Attributes:
        path: PNG file.
        caption: Sentence that says what the picture shows and how to read it.
    """

    path: pathlib.Path
    caption: str
    kind: ClassVar[str] = 'picture'

    @property
    def data(self) -> str:
        """Content of the PNG file, encoded in base64."""
        return base64.b64encode(self.path.read_bytes()).decode('ascii')


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column holds the names of the rows.

    Attributes:
        caption: Meaning of the numbers, without a final period.
        head: Names of the columns.
        rows: Cells of each row, as many as there are columns.
        bars: Length, 0 to 1, of the bar below the name of each row; () for no bars.
        text_columns: Indices of the columns that hold text, besides the first.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] = ()
    text_columns: Sequence[int] = ()
    kind: ClassVar[str] = 'table'

    @classmethod
    def of(cls, caption: str, rows: Sequence[Mapping[str, str]], **options: Any) -> 'Table':
        """Create a table from rows that name their columns; a missing cell is shown as a dash.

        Args:
            caption: Meaning of the numbers, without a final period.
            rows: Cells by column name; the first column holds the names of the rows.
            **options: Further attributes of the table.
        """
        head = [*dict.fromkeys(column for row in rows for column in row)]
        return cls(
            caption,
            head,
            [[row.get(column, NO_VALUE) for column in head] for row in rows],
            **options,
        )


@dataclasses.dataclass(frozen=True)
class Fold:
    """A collapsed block that the reader can expand."""

    title: str
    blocks: Sequence['ReportBlock']
    kind: ClassVar[str] = 'fold'


ReportBlock = Text | BulletList | Picture | Table | Fold


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        name: Anchor in the HTML page, and key in `analysis.json`.
        title: Heading.
        blocks: Content of the HTML and Markdown reports.
        numbers: Content of the section in `analysis.json`.
    """

    name: str
    title: str
    blocks: Sequence[ReportBlock]
    numbers: Any = None


def write(title: str, sections: Sequence[Section], output: pathlib.Path) -> str:
    """Write sections as `report.html`, `report.md` and `analysis.json`, next to their pictures.

    Args:
        title: Heading of the report.
        sections: Sections to write.
        output: Existing directory to write to.

    Returns:
        The report in Markdown.
    """
    text = to_markdown(title, sections)
    files.write_text(output / 'report.html', to_html(title, sections))
    files.write_text(output / 'report.md', text)
    files.write_json(output / 'analysis.json', {each.name: each.numbers for each in sections})
    return text


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Return one self-contained HTML page; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('malora_jax.analysis', 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests['italic'] = lambda cell: isinstance(cell, Italic)
    return environment.get_template('report.html').render(title=title, sections=sections)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the report in Markdown, with links to the pictures."""
    return '\n\n'.join([f'# {_escaped(title)}', *map(section_to_markdown, sections)])


def section_to_markdown(section: Section) -> str:
    """Return one section in Markdown."""
    return '\n\n'.join([f'## {_escaped(section.title)}', *_paragraphs(section.blocks)])


def _paragraphs(blocks: Sequence[ReportBlock]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Text(text):
                yield _escaped(text)
            case BulletList(items, title):
                if title:
                    yield f'### {_escaped(title)}'
                yield '\n'.join(f'- {_escaped(item)}' for item in items)
            case Picture(path, caption):
                yield f'![{path.stem.replace("_", " ")}]({path.name})'
                yield _escaped(caption)
            case Table(caption, head, rows):
                yield _escaped(f'{caption}.')
                yield markdown.table([[*map(_cell, row)] for row in itertools.chain([head], rows)])
            case Fold(title, inner):
                yield f'### {_escaped(title)}'
                yield from _paragraphs(inner)


def _cell(text: str) -> str:
    plain = _escaped(text).replace('|', r'\|')
    return f'*{plain}*' if isinstance(text, Italic) else plain


def _escaped(text: str) -> str:
    """Escape Markdown's markup characters, and remove soft hyphens, which only HTML needs.

    Brackets stay as they are, because intervals have them. Without `](` they cannot be links.
    """
    for character in r'\*<`':
        text = text.replace(character, f'\\{character}')
    text = text.replace('](', r']\(')
    return str(text).replace('\u00ad', '')
