"""Run directories in a bucket, on a server that emulates Google Cloud Storage."""

import os
import subprocess
import sys
import time

import pytest
from google.cloud import storage

from malora_jax import cloud_storage
from malora_jax.data.file_tasks import file_digests, file_tasks, read_examples
from malora_jax.errors import UserError


class Objects:
    """Objects under an address, as another client sees them."""

    def __init__(self, address: str):
        bucket, self.key = address.removeprefix('gs://').split('/', 1)
        self.bucket = storage.Client().bucket(bucket)

    def write(self, name: str, text: str) -> None:
        self.bucket.blob(f'{self.key}/{name}').upload_from_string(text)

    def read(self) -> dict[str, str]:
        blobs = self.bucket.client.list_blobs(self.bucket, prefix=f'{self.key}/')
        return {b.name.removeprefix(f'{self.key}/'): b.download_as_text() for b in blobs}

    def generations(self) -> dict[str, int]:
        blobs = self.bucket.client.list_blobs(self.bucket, prefix=f'{self.key}/')
        return {blob.name.removeprefix(f'{self.key}/'): blob.generation for blob in blobs}


@pytest.fixture
def address(bucket, request) -> str:
    return f'{bucket}/{request.node.name}'


@pytest.fixture
def objects(address) -> Objects:
    return Objects(address)


@pytest.fixture(autouse=True)
def _alone():
    yield
    cloud_storage.remove_local_copies()


def anew(address: str):
    """Return a new local copy, as another process would make it."""
    copy = cloud_storage._LocalCopy(*address.removeprefix('gs://').split('/', 1))
    copy.download_changes()
    return copy


def test_what_is_no_address_is_a_path():
    assert str(cloud_storage.localize('~/runs')) == os.path.expanduser('~/runs')
    path = cloud_storage.localize('runs/a')
    assert cloud_storage.remote_path(path) is path
    cloud_storage.upload_changes()


def test_files_are_copied_and_checkpoints_are_not(address, objects):
    objects.write('config.json', '{}')
    objects.write('one/metrics.jsonl', 'x\n')
    objects.write('checkpoints/2/state', 'large')
    objects.write('one/checkpoints/2/state', 'large')
    objects.write('.lock', '')
    objects.bucket.blob(f'{objects.key}/folder/').upload_from_string('')
    objects.bucket.blob(f'{objects.key}-2/config.json').upload_from_string('of another')
    path = cloud_storage.localize(f'{address}/')
    assert path.name == address.rsplit('/', 1)[1]
    found = {str(each.relative_to(path)) for each in path.rglob('*') if each.is_file()}
    assert found == {'config.json', 'one/metrics.jsonl'}
    assert str(cloud_storage.remote_path(path / 'checkpoints')) == f'{address}/checkpoints'
    assert (cloud_storage.remote_path(path / 'checkpoints') / '2' / 'state').read_text() == 'large'


def test_what_has_changed_is_written_back(address, objects):
    objects.write('same', 'a')
    objects.write('longer', 'a')
    before = objects.generations()
    path = cloud_storage.localize(address)
    with (path / 'longer').open('a') as file:
        file.write('b')
    (path / 'new').mkdir()
    (path / 'new' / 'file').write_text('c')
    (path / '.hidden').write_text('d')
    (path / 'checkpoints').mkdir()
    (path / 'checkpoints' / 'file').write_text('e')
    cloud_storage.upload_changes()
    assert objects.read() == {'same': 'a', 'longer': 'ab', 'new/file': 'c'}
    assert objects.generations()['same'] == before['same']
    after = objects.generations()
    cloud_storage.upload_changes()
    assert objects.generations() == after


def test_files_are_written_back_in_the_order_in_which_they_were_written(address, monkeypatch):
    """`results.json` must come last, because it marks a run as complete."""
    path = cloud_storage.localize(address)
    path.mkdir(parents=True)
    for name in ('z', 'a', 'm'):
        (path / name).write_text(name)
        time.sleep(0.02)
    order, original = [], cloud_storage._LocalCopy._upload_file
    monkeypatch.setattr(
        cloud_storage._LocalCopy,
        '_upload_file',
        lambda self, p: (order.append(p.name), original(self, p))[1],
    )
    cloud_storage.upload_changes()
    assert order == ['z', 'a', 'm']


def test_of_two_commands_in_one_directory_the_one_that_began_first_stops(address, objects):
    """The first command writes nothing at all, so that the second one meets no conflict."""
    for name in ('metrics.jsonl', 'goodput.jsonl'):
        objects.write(name, 'start\n')
    first, second = anew(address), anew(address)

    def append(copy, name, text):
        with (copy.path / name).open('a') as file:
            file.write(text)
        time.sleep(0.02)

    append(second, 'goodput.jsonl', 'second\n')
    second.upload_changes()
    append(first, 'metrics.jsonl', 'first\n')  # The older file is pushed first.
    append(first, 'goodput.jsonl', 'first\n')
    message = f'Another command has written to {address}: this command stops'
    with pytest.raises(OSError, match=message):
        first.upload_changes()
    assert objects.read() == {'goodput.jsonl': 'start\nsecond\n', 'metrics.jsonl': 'start\n'}
    append(second, 'metrics.jsonl', 'second\n')
    second.upload_changes()
    assert objects.read()['metrics.jsonl'] == 'start\nsecond\n'


def test_a_new_file_does_not_take_the_place_of_one_that_has_come(address, objects):
    copy = anew(address)
    copy.path.mkdir(parents=True)
    (copy.path / 'file').write_text('ours')
    objects.write('file', 'theirs')
    with pytest.raises(OSError, match='Another command'):
        copy.upload_changes()
    assert objects.read() == {'file': 'theirs'}


def test_what_was_written_though_the_answer_was_lost_is_no_conflict(address, objects):
    copy = anew(address)
    copy.path.mkdir(parents=True)
    (copy.path / 'file').write_text('ours')
    objects.write('file', 'ours')
    copy.upload_changes()
    (copy.path / 'file').write_text('ours, longer')
    copy.upload_changes()
    assert objects.read() == {'file': 'ours, longer'}


def test_a_directory_is_removed_here_and_there(address, objects):
    for name in ('tensorboard/old', 'tensorboard/older', 'metrics.jsonl'):
        objects.write(name, name)
    path = cloud_storage.localize(address)
    cloud_storage.remove(path / 'tensorboard')
    (path / 'tensorboard').mkdir()
    (path / 'tensorboard' / 'new').write_text('new')
    cloud_storage.upload_changes()
    assert objects.read() == {'tensorboard/new': 'new', 'metrics.jsonl': 'metrics.jsonl'}


def test_what_is_new_in_the_bucket_is_seen_when_it_is_asked_for_again(address, objects):
    objects.write('file', 'old')
    path = cloud_storage.localize(address)
    objects.write('file', 'new')
    objects.write('other', 'too')
    assert cloud_storage.localize(address) == path
    assert (path / 'file').read_text() == 'new'
    assert (path / 'other').read_text() == 'too'


def test_messages_name_the_address(address):
    path = cloud_storage.localize(address)
    assert cloud_storage.with_remote_paths(f'{path} holds no run.') == f'{address} holds no run.'


def test_a_data_file_in_a_bucket(address, objects):
    objects.write('faq.jsonl', '{"question": "Who?", "answer": "You."}\n')
    fields = {'question_field': 'question', 'answer_field': 'answer', 'scorer': 'exact_match'}
    [task] = file_tasks([f'{address}/faq.jsonl'], (), **fields)
    assert task.name == 'faq'
    assert [each.question for each in read_examples(task, task.path).examples] == ['Who?']
    # The digest's key is the name in the config, so that it is the same on another machine.
    assert [*file_digests([task])] == [f'{address}/faq.jsonl']


# User errors.


@pytest.mark.parametrize('address', ['gs://', 'gs://bucket', 'gs:///path', 's3://bucket/path'])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError) as caught:
        cloud_storage.localize(address)
    assert str(caught.value) == f'{address} must be a local path or gs://BUCKET/PATH.'


def test_a_bucket_that_is_none(bucket):
    with pytest.raises(UserError) as caught:
        cloud_storage.localize('gs://other/runs/a')
    assert str(caught.value) == 'gs://other/runs/a: there is no such bucket.'


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(cloud_storage.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError) as caught:
        cloud_storage.localize('gs://bucket/runs/a')
    assert str(caught.value) == (
        "gs://bucket/runs/a needs gcsfs: run pip install '.[gcs]' in malora_jax's source directory."
    )


def without_server(home, **variables) -> str:
    """Return the error of opening an address in a process that does not know this test's server."""
    code = """
from google.cloud.storage import retry
from malora_jax import cloud_storage
retry.DEFAULT_RETRY._timeout = 0.1
try:
    cloud_storage.localize('gs://bucket/runs/a')
except Exception as error:
    print(type(error).__name__, error)
"""
    left = {name: value for name, value in os.environ.items() if 'EMULATOR' not in name}
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=left | {'HOME': str(home), 'NO_GCE_CHECK': 'true'} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.count('\n') == 1, done
    return done.stdout


def test_without_credentials(tmp_path):
    assert without_server(tmp_path) == (
        'UserError gs://bucket/runs/a: there are no credentials of Google Cloud; run gcloud auth '
        'application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a key file.\n'
    )


def test_without_a_network(tmp_path):
    found = without_server(tmp_path, STORAGE_EMULATOR_HOST='http://127.0.0.1:9')
    assert found.startswith('OSError gs://bucket/runs/a cannot be reached (')
    assert found.endswith('); the same command resumes from what it saved.\n')
