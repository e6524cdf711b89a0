"""Write the parts that all notebooks share: badge, metadata, install cell and expected times.

`make docs` runs this. It also shortens the progress in stored outputs. To run a notebook and store
its outputs with the times of its cells:

    jupyter execute --inplace notebooks/NAME.ipynb
    python -m docs.notebooks
"""

import datetime
import itertools
import json
import re
from typing import Any

from docs import repository
from malora_jax.analysis.conditions import count

# Colab opens a notebook with this machine; the T4 is a GPU that everyone can use.
METADATA = {
    'accelerator': 'GPU',
    'colab': {'gpuType': 'T4', 'provenance': []},
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}
# A line of progress, such as "train: step 120/240, loss 0.412".
PROGRESS = re.compile(r'(.+): \w+ \d+/\d+(,|$)')
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
INSTALL = """\
# Finds the code and installs what is missing. On Colab, it asks you to restart the session once.
import os
import pathlib
import {module}
import sys


def find_root() -> pathlib.Path | None:
    here = pathlib.Path.cwd()
    folders = [here, *here.parents, *here.glob('malora_jax*/'), *here.glob('malora_jax*/*/')]
    return next((path for path in folders if (path / 'configs' / 'quickstart.py').exists()), None)


{download}
os.chdir(root)
sys.path.insert(0, str(root))  # configs/ and experiments/ are not installed packages.

from notebooks import colab_setup

colab_setup.prepare()"""
CLONE = """\
if find_root() is None:
    url = '{url}'
    subprocess.run(['git', 'clone', '--depth=1', url, 'malora_jax_code'], check=True)
root = find_root()"""
UNPACK = """\
if find_root() is None and pathlib.Path('malora_jax.zip').exists():
    shutil.unpack_archive('malora_jax.zip', 'malora_jax_code')
root = find_root()
if root is None:
    raise FileNotFoundError(
        'The code is missing: start Jupyter in the checkout, or run `git archive '
        '--output=malora_jax.zip HEAD` there and upload malora_jax.zip to Colab (Files panel).'
    )"""


def main() -> None:
    """Write the shared parts into all notebooks."""
    url = repository.address()
    for path in sorted((repository.ROOT / 'notebooks').glob('*.ipynb')):
        book = json.loads(path.read_text('utf-8'))
        update(book, path.stem, url)
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + '\n', 'utf-8')


def update(book: dict[str, Any], name: str, url: str) -> None:
    """Write the shared parts into a notebook, whose first two cells are its title and install cell.

    Args:
        book: Content of the notebook; changed in place.
        name: Name of the notebook's file without its suffix.
        url: Address of the repository; '' if it has none.
    """
    title, install, *cells = book['cells']
    book['metadata'] = METADATA
    text = re.sub(r'^\[!\[Open in Colab\].*\n+', '', source(title))
    set_source(title, badge(name, url) + text)
    set_source(install, install_cell(url))
    for cell, following in itertools.pairwise(cells):
        mark = r'(?<=<!-- generated: time -->).*?(?=<!-- end -->)'
        if cell['cell_type'] == 'markdown' and re.search(mark, source(cell)):
            set_source(cell, re.sub(mark, expected_time(following), source(cell)))
    for cell in book['cells']:
        if cell['cell_type'] == 'code':
            cell['outputs'] = tidy_outputs(cell['outputs'])


def badge(name: str, url: str) -> str:
    """Return the link that opens a notebook in Colab; '' unless the repository is on GitHub."""
    if not url.startswith('https://github.com/'):
        return ''
    path = url.removeprefix('https://github.com/').removesuffix('.git')
    colab = f'https://colab.research.google.com/github/{path}'
    return f'[![Open in Colab]({BADGE})]({colab}/blob/main/notebooks/{name}.ipynb)\n\n'


def install_cell(url: str) -> str:
    """Return the code of the install cell.

    Args:
        url: Address to clone if the code is not here; '' to use an uploaded archive instead.
    """
    module, download = ('subprocess', CLONE.format(url=url)) if url else ('shutil', UNPACK)
    return INSTALL.format(module=module, download=download)


def expected_time(cell: dict[str, Any]) -> str:
    """Return a sentence that says how long a code cell took when its stored outputs were made."""
    times = cell['metadata'].get('execution')
    if not times:
        return 'Expected time: not measured.'
    start, end = (
        datetime.datetime.fromisoformat(times[key])
        for key in ('iopub.execute_input', 'shell.execute_reply')
    )
    minutes = round((end - start).total_seconds() / 60)
    about = count(minutes, 'minute') if minutes else 'less than a minute'
    return (
        f'Expected time: at most {about} on two CPU cores, measured next to other programs; GPUs '
        'and TPUs were not measured.'
    )


def tidy_outputs(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outputs of a cell with all its printed text in one output per stream.

    Lines that were redrawn, and all but the first and last line of each progress, are omitted.

    Args:
        outputs: Outputs as the notebook stores them.
    """
    streams: dict[str, list[str]] = {}
    kept = []
    for output in outputs:
        name = output.get('name')
        if name not in streams:
            kept.append(output)
        if name:
            streams.setdefault(name, []).extend(output['text'])
    for output in kept:
        if name := output.get('name'):
            text = ''.join(streams[name]).replace('\r\n', '\n')
            output['text'] = shorten_progress(re.sub(r'.*\r', '', text).splitlines(keepends=True))
    return kept


def shorten_progress(lines: list[str]) -> list[str]:
    """Return lines with only the first and last line of each progress."""

    def label(line: str) -> str | None:
        found = PROGRESS.match(line)
        return found[1] if found else None

    kept: list[str] = []
    for name, group in itertools.groupby(lines, label):
        same = [*group]
        kept += same if name is None else dict.fromkeys((same[0], same[-1]))
    return kept


def source(cell: dict[str, Any]) -> str:
    """Return the text of a cell."""
    return ''.join(cell['source'])


def set_source(cell: dict[str, Any], text: str) -> None:
    """Set the text of a cell, as the list of lines that notebooks store."""
    cell['source'] = text.splitlines(keepends=True)


if __name__ == '__main__':
    main()
