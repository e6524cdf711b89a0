"""Records of finished runs: what reports read stays, texts and weights go."""

import tarfile

import pytest

from configs import intra_domain_small
from malora_jax.errors import UserError
from malora_jax.runs import LoadedRun, read_runs, seed_groups
from malora_jax.runs.records import RECORD_FILE, restore_record, write_record
from tests.helpers.finished_runs import write_finished_run


@pytest.fixture
def run(tmp_path):
    config = intra_domain_small.get_config('lora')
    nats = {task: [0.123456789 + q for q in range(40)] for task in config.data.tasks}
    write_finished_run(tmp_path / 'lora', config, 20, nats=nats)
    (tmp_path / 'lora' / 'checkpoints').mkdir()
    return tmp_path / 'lora'


def test_a_restored_run_has_the_numbers_of_the_run(tmp_path, run):
    write_record(run, tmp_path / 'records' / 'lora.tar.xz')
    restore_record(tmp_path / 'records' / 'lora.tar.xz', tmp_path / 'restored')
    one, restored = LoadedRun(run), LoadedRun(tmp_path / 'restored')
    assert restored.raw_config == one.raw_config and restored.results == one.results
    assert [*restored.records[0]] == [*one.records[0]]
    assert restored.records[2] == pytest.approx(one.records[2], rel=1e-4)
    for before, after in zip(one.answers_after, restored.answers_after, strict=True):
        assert after['task'] == before['task']
        kept = ('score', 'nats', 'tokens')
        assert [after[name] for name in kept] == pytest.approx(
            [before[name] for name in kept], rel=1e-4
        )
    # The same question has the same hash, so that differences can be paired by question.
    hashes = {row['question'] for row in restored.answers_after}
    assert len(hashes) == 40 and hashes == {row['question'] for row in restored.answers_before}
    (group,) = seed_groups(read_runs([tmp_path / 'restored']))[1:]
    assert group.average_loss() == pytest.approx(LoadedRun(run).task_mean('loss_after'), rel=1e-4)


def test_a_record_has_no_texts_and_no_weights(tmp_path, run):
    write_record(run, tmp_path / 'lora.tar.xz')
    with tarfile.open(tmp_path / 'lora.tar.xz') as archive:
        names = archive.getnames()
        texts = ''.join(archive.extractfile(name).read().decode() for name in names)
    assert names == [
        *(RECORD_FILE, 'config.json', 'metrics.jsonl', 'answers_before.jsonl'),
        *('answers_after.jsonl', 'results.json'),
    ]
    assert 'What is' not in texts and 'expected' not in texts


def test_the_same_run_gives_the_same_bytes(tmp_path, run):
    for name in ('one', 'other'):
        write_record(run, tmp_path / f'{name}.tar.xz')
    assert (tmp_path / 'one.tar.xz').read_bytes() == (tmp_path / 'other.tar.xz').read_bytes()


def test_a_damaged_record_is_refused(tmp_path, run):
    record = tmp_path / 'lora.tar.xz'
    write_record(run, record)
    record.write_bytes(record.read_bytes()[:-200])
    with pytest.raises(UserError, match=r'lora\.tar\.xz is not a record of a run'):
        restore_record(record, tmp_path / 'restored')
    assert not (tmp_path / 'restored' / 'results.json').exists()
