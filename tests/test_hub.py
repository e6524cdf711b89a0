"""Downloading datasets from the Hugging Face hub: requests, and messages for each refusal.

tests/models/test_base_model.py covers models.
"""

import errno
import functools
import json
import types

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from malora_jax import hub
from malora_jax.errors import UserError

COMMIT = 'c' * 40
PAGE = 'https://huggingface.co/datasets/owner/rows'
# Response attributes that the hub's errors read.
ANSWER = types.SimpleNamespace(headers={}, request=None)

snapshot = functools.partial(
    hub.download_snapshot,
    'owner/rows',
    ['main/train/*.parquet'],
    repo_type='dataset',
    alternative='name local files',
    revision='refs/convert/parquet',
)


def refuse(monkeypatch, error: Exception) -> None:
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_what_is_asked_and_what_is_given(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(*names, **settings):
        asked.append((names, settings))
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    assert snapshot() == tmp_path / COMMIT
    assert asked == [
        (
            ('owner/rows',),
            {
                'repo_type': 'dataset',
                'revision': 'refs/convert/parquet',
                'allow_patterns': ['main/train/*.parquet'],
                'ignore_patterns': [],
            },
        )
    ]


@pytest.mark.parametrize(
    'error, expected',
    [
        (
            hub_errors.GatedRepoError('Access to dataset\nis restricted', response=ANSWER),
            f'owner/rows is gated: accept its license at {PAGE} and set HF_TOKEN to a token of '
            'your account.',
        ),
        (
            hub_errors.RevisionNotFoundError('404\nno revision', response=ANSWER),
            f'{PAGE} has no revision refs/convert/parquet: name local files.',
        ),
        (
            hub_errors.RepositoryNotFoundError('404\nnot found', response=ANSWER),
            'There is no public dataset owner/rows on the Hugging Face Hub; for a private one set '
            'HF_TOKEN.',
        ),
        (
            hub_errors.LocalEntryNotFoundError('Cannot find\nan appropriate snapshot'),
            'owner/rows is not in the local cache, and the Hugging Face Hub cannot be reached: '
            'connect, or name local files.',
        ),
        (
            caused(
                hub_errors.LocalEntryNotFoundError('Cannot find\nan appropriate snapshot'),
                hub_errors.HfHubHTTPError('429 Too\nMany Requests', response=ANSWER),
            ),
            'owner/rows could not be downloaded from the Hugging Face Hub: 429 Too Many Requests',
        ),
        (
            hub_errors.HfHubHTTPError('503 Service\nUnavailable', response=ANSWER),
            'owner/rows could not be downloaded from the Hugging Face Hub: 503 Service Unavailable',
        ),
        # The login page of a network, instead of the hub's answer.
        (
            json.JSONDecodeError('Expecting value', '<html>', 0),
            'owner/rows could not be downloaded from the Hugging Face Hub: Expecting value: line 1 '
            'column 1 (char 0)',
        ),
        # An error of the HTTP library, when a download breaks off or the proxy's address is
        # invalid.
        (
            type('ReadTimeout', (Exception,), {})('timed\nout'),
            'owner/rows could not be downloaded from the Hugging Face Hub: timed out',
        ),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, expected):
    refuse(monkeypatch, error)
    with pytest.raises(UserError) as caught:
        snapshot()
    assert str(caught.value) == expected


def test_a_full_disk_is_not_the_hubs_fault(monkeypatch):
    refuse(monkeypatch, OSError(errno.ENOSPC, 'No space left on device'))
    with pytest.raises(OSError, match='No space left') as caught:
        snapshot()
    assert caught.value.errno == errno.ENOSPC


def test_what_is_in_the_cache_needs_no_hub(monkeypatch, tmp_path):
    """The hub library's own cache lookup finds the snapshot."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    repository = tmp_path / 'datasets--owner--rows'
    expected = repository / 'snapshots' / COMMIT
    expected.mkdir(parents=True)
    branch = repository / 'refs' / 'refs' / 'convert' / 'parquet'
    branch.parent.mkdir(parents=True)
    branch.write_text(COMMIT)
    assert snapshot() == expected
    assert snapshot(revision=COMMIT) == expected
    with pytest.raises(UserError, match='Hub cannot be reached: connect, or name local files'):
        snapshot(revision='d' * 40)
