"""What a report is made of, and how it becomes one HTML file without anything beside it."""

import base64
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jinja2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = 'text'


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG, with one sentence that says what one sees and how to read it."""

    path: pathlib.Path
    caption: str
    kind: ClassVar[str] = 'picture'

    @property
    def data(self) -> str:
        """The file, as it stands in a page."""
        return base64.b64encode(self.path.read_bytes()).decode('ascii')


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells; those of the first column are names.

    Attributes:
        caption: what the numbers are.
        head: of the columns.
        rows: as many cells as the head.
        bars: for each row the share, 0 to 1, that a bar below its name shows; () = none.
        texts: numbers of columns that hold text, besides the first.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] = ()
    texts: Sequence[int] = ()
    kind: ClassVar[str] = 'table'


@dataclasses.dataclass(frozen=True)
class Fold:
    """Details that are shown on demand."""

    title: str
    blocks: Sequence['Block']
    kind: ClassVar[str] = 'fold'


Block = Text | Picture | Table | Fold


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: its anchor, and its key in analysis.json.
        title: its heading.
        blocks: what it shows.
        numbers: the same for programs.
    """

    name: str
    title: str
    blocks: Sequence[Block]
    numbers: Any


def render(title: str, sections: Sequence[Section]) -> str:
    """The page; whatever names hold is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('malora_jax.analysis.report', 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template('report.html').render(title=title, sections=sections)
