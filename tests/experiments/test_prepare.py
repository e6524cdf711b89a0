"""experiments.prepare as a user calls it: from local files, and from a local fake hub."""

import hashlib
import http.server
import json
import pathlib
import re
import subprocess
import threading
import urllib.parse
from typing import ClassVar

import pyarrow
import pyarrow.parquet
import pytest

from configs import intra_domain_small
from malora_jax.errors import UserError
from malora_jax.training.prepare import prepare_datasets
from tests.helpers.fork_server import run_module

pytestmark = pytest.mark.slow(start_first=True)

COMMIT = 'c' * 40


def piqa(*numbers: int) -> list[dict]:
    return [{'goal': f'goal {n}', 'sol1': 'this', 'sol2': 'that', 'label': n % 2} for n in numbers]


ROWS = {'train': piqa(*range(12)), 'test': piqa(20, 21)}


@pytest.fixture
def sources(tmp_path) -> list[str]:
    """PIQA in local files, with a broken third row in train."""
    rows = {'train': [*ROWS['train'][:2], {'goal': ''}, *ROWS['train'][2:]], 'test': ROWS['test']}
    for split, of_split in rows.items():
        lines = ''.join(json.dumps(row) + '\n' for row in of_split)
        (tmp_path / f'{split}.jsonl').write_text(lines)
    return [f'piqa/{split}={tmp_path}/{split}.jsonl' for split in rows]


def run(
    directory: pathlib.Path, *overrides: str, **environment: str
) -> subprocess.CompletedProcess:
    config = '--config=configs/intra_domain_small.py:malora,task=piqa'
    return run_module(
        *('experiments.prepare', config, f'--config.data.directory={directory}', *overrides),
        timeout=120,
        # Another test may have set this variable in this process.
        **{'HF_HUB_OFFLINE': '0', **environment},
    )


def besides_progress(stderr: str) -> list[str]:
    """Return the lines of stderr that do not show the progress, as in slow tests."""
    progress = re.compile(r'prepare piqa/(train|test): row \d+')
    return [line for line in stderr.splitlines() if not progress.fullmatch(line)]


def config(**changes) -> dict:
    found = intra_domain_small.get_config('malora,task=piqa')
    found.data.update(changes)
    return found.to_dict()


def test_local_files(tmp_path, sources):
    expected = (
        f'Prepared in {tmp_path}/data, with malora_jax.lock.json:\n'
        f'  piqa: 12 train, 2 test, from test={tmp_path}/test.jsonl, '
        f'train={tmp_path}/train.jsonl; broken rows skipped: 1\n'
    )
    override = f'--config.data.sources={tuple(sources)!r}'
    first = run(tmp_path / 'data', override)
    assert (first.returncode, first.stdout) == (0, expected), first.stderr
    assert besides_progress(first.stderr) == [], 'TFDS is silent'
    lock = json.loads((tmp_path / 'data' / 'malora_jax.lock.json').read_text())['piqa']
    assert lock['left_out'] == [
        f"{tmp_path}/train.jsonl line 3 has no field 'sol1'; it has 'goal'."
    ]
    again = run(tmp_path / 'data', override)
    assert (again.returncode, again.stdout, again.stderr) == (0, expected, '')


def test_overlaps_are_told(tmp_path):
    """A question with other options is another problem; both numbers are told."""
    rows = {'train': piqa(*range(12)), 'test': [*piqa(3, 20), {**piqa(4)[0], 'sol1': 'those'}]}
    rows['test'][0]['goal'] = 'Goal  3 '
    sources = []
    for split, of_split in rows.items():
        path = tmp_path / f'{split}.jsonl'
        path.write_text(''.join(json.dumps(row) + '\n' for row in of_split))
        sources.append(f'piqa/{split}={path}')
    told = prepare_datasets(config(directory=str(tmp_path / 'data'), sources=tuple(sources)))
    assert told.splitlines()[2:] == [
        'Test questions that are also in a training set, which are kept:',
        '  piqa: 2 of 3 are in piqa, 1 of them with the same options',
    ]


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Fake hub that answers the client's requests for a repository."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        content = self.files.get(path.partition(f'/resolve/{COMMIT}/')[2], b'')
        if path == '/api/datasets/ybisk/piqa/revision/refs/convert/parquet':
            content = json.dumps({'id': 'ybisk/piqa', 'sha': COMMIT}).encode()
        elif path == f'/api/datasets/ybisk/piqa/tree/{COMMIT}':
            content = json.dumps(
                [
                    {'type': 'file', 'path': name, 'size': len(file), 'oid': '0' * 40}
                    for name, file in self.files.items()
                ]
            ).encode()
        self.send_response(200 if content else 404)
        self.send_header('ETag', f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """Address of a hub with PIQA, and with one file that must not be downloaded."""
    for split, of_hub in (('train', 'train'), ('test', 'validation')):
        path = tmp_path / f'{split}.parquet'
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[split]), path)
        HubHandler.files[f'plain_text/{of_hub}/0000.parquet'] = path.read_bytes()
    HubHandler.files['plain_text/test/0000.parquet'] = b'without labels'
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_the_hub_and_then_no_network(tmp_path, hub):
    """The second run has neither the store nor a hub, but uses the downloaded files."""
    expected = (
        'Prepared in {}, with malora_jax.lock.json:\n'
        f'  piqa: 12 train, 2 test, from ybisk/piqa at {COMMIT}\n'
    )
    cache = {'HF_HOME': str(tmp_path / 'cache'), 'HF_HUB_DISABLE_XET': '1'}
    cache['HF_HUB_DISABLE_PROGRESS_BARS'] = '1'  # The hub's own, in another form than ours.
    done = run(tmp_path / 'data', **cache, HF_ENDPOINT=hub)
    assert (done.returncode, done.stdout) == (0, expected.format(tmp_path / 'data')), done.stderr
    assert besides_progress(done.stderr) == []
    downloaded = (tmp_path / 'cache').rglob('0000.parquet')
    assert {path.parent.name for path in downloaded} == {'train', 'validation'}
    again = run(tmp_path / 'again', **cache, HF_HUB_OFFLINE='1')
    assert (again.returncode, again.stdout) == (0, expected.format(tmp_path / 'again'))


def test_a_mistake_is_one_line_and_status_2(tmp_path, sources):
    """The message has its own line, also after progress."""
    overrides = [f'--config.data.sources={tuple(sources)!r}', '--config.data.skip_broken=False']
    done = run(tmp_path / 'data', *overrides)
    assert (done.returncode, done.stdout) == (2, '')
    assert besides_progress(done.stderr) == [
        f"{tmp_path}/train.jsonl line 3 has no field 'sol1'; it has 'goal'; set data.skip_broken "
        'to True to skip such rows.'
    ]
    assert done.stderr.splitlines()[-1].startswith(str(tmp_path))


def test_every_dataset_of_a_config_once(tmp_path, sources):
    """Training datasets come first, then those that are only scored; other tasks are skipped."""
    for split in ('train', 'test'):
        row = {'question': 'q', 'answer': '#### 1'}
        (tmp_path / f'gsm-{split}.jsonl').write_text(json.dumps(row))
        sources.append(f'gsm8k/{split}={tmp_path}/gsm-{split}.jsonl')
    where = {'directory': str(tmp_path / 'data'), 'sources': tuple(sources)}
    changed = config(**where, tasks=('chain_sum', 'piqa'), template='chatml', max_per_task=1)
    changed['evaluation']['tasks'] = ('piqa', 'gsm8k')
    lines = prepare_datasets(changed).splitlines()[1:]
    assert [line.partition(':')[0].strip() for line in lines] == ['piqa', 'gsm8k']


def test_a_config_without_public_datasets(tmp_path):
    changed = config(
        directory=str(tmp_path / 'data'), tasks=('chain_sum',), template='chatml', max_per_task=1
    )
    changed['evaluation']['tasks'] = ()
    assert prepare_datasets(changed) == 'Nothing to prepare: this config names no public dataset.'
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({'sources': ('piqa=a',)}, "data.sources holds 'piqa=a'; write 'DATASET/SPLIT=PATH'"),
        ({'sources': ('piqa/train=none.jsonl',)}, 'There is no data file none.jsonl (looked for '),
        (
            {'task_settings': ('piqa.shots=x',)},
            "'piqa.shots=x': the number of shots must be a whole number",
        ),
        ({'directory': __file__}, f'data.directory: {__file__} is not a directory.'),
    ],
)
def test_mistakes(tmp_path, sources, changes, expected):
    where = {'directory': str(tmp_path / 'data'), 'sources': tuple(sources)}
    with pytest.raises(UserError) as caught:
        prepare_datasets(config(**where | changes))
    assert expected in str(caught.value) and '\n' not in str(caught.value)
