"""Data card of a release: its files, the licenses of their sources, and the changes to them."""

import collections
from collections.abc import Mapping

from malora_jax import markdown
from malora_jax.ultralink.attribution import FOLDER

NAME = 'README.md'
_UNKNOWN = 'not recorded'
_TEXT = f"""\
# Data card

Each line of LANGUAGE_SUBSET.jsonl is a conversation: `data` alternates user and assistant messages.

## Files

{{table}}

## Attribution

`{FOLDER}/LANGUAGE_SUBSET.sources.jsonl` has a line for each conversation, in the same order, with
the article or the row of a dataset that it was made of: `source` has its id, title, URL and
license, as far as they are known. To use or to share a conversation, follow the license of its
source. Some licenses, such as CC BY-SA, require that you keep the attribution and share adapted
material under the same license.

## Changes

- `chat_specific`: articles were cut into segments. A model asked and answered questions about them.
- The other subsets: conversations of public datasets. Those in English may have been repaired, such
  as by removing a last question without an answer. Those in other languages were translated by a
  model.
"""


def text(licenses: Mapping[str, collections.Counter[str]]) -> str:
    """Return the data card in Markdown.

    Args:
        licenses: Number of rows with each license, by the name of the released file; the license
            '' is unknown.
    """
    rows = [('file', 'rows', 'licenses of the sources')]
    for name, numbers in sorted(licenses.items()):
        listed = (f'{each or _UNKNOWN} ({number:,})' for each, number in sorted(numbers.items()))
        rows.append((f'`{name}`', f'{numbers.total():,}', ', '.join(listed)))
    return _TEXT.format(table=markdown.table(rows))
