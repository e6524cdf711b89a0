import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.training.metrics import MetricWriter, read_metrics


def record(step: int) -> dict[str, float]:
    return {'step': step, 'loss': 1 / step, 'loss/größer': 0.5}


def write(workdir, continued_from: int, steps) -> list[dict[str, float]]:
    with MetricWriter(workdir, continued_from) as writer:
        for step in steps:
            writer.write(record(step))
        return writer.records


def lines(workdir) -> list[dict[str, float]]:
    text = (workdir / 'metrics.jsonl').read_text('utf-8')
    assert not text or text.endswith('\n')
    return [json.loads(line) for line in text.splitlines()]


def test_one_object_a_line(tmp_path):
    assert write(tmp_path, 0, [1, 2, 3]) == lines(tmp_path) == [record(i) for i in (1, 2, 3)]
    assert read_metrics(tmp_path / 'metrics.jsonl') == lines(tmp_path)
    assert list((tmp_path / 'tensorboard').glob('events.*'))


def test_each_record_is_on_disk_at_once(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(record(1))
        assert lines(tmp_path) == [record(1)]


@pytest.mark.parametrize('checkpoint', [0, 2, 4])
def test_records_after_the_checkpoint_are_dropped(tmp_path, checkpoint):
    write(tmp_path, 0, [1, 2, 3, 4])
    with MetricWriter(tmp_path, checkpoint) as writer:
        assert writer.records == [record(i) for i in range(1, checkpoint + 1)]
        assert lines(tmp_path) == writer.records
    again = write(tmp_path, checkpoint, range(checkpoint + 1, 7))
    assert again == lines(tmp_path) == [record(i) for i in range(1, 7)]


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(1, len(json.dumps(record(3)))))
def test_a_line_that_was_cut_short_is_dropped(tmp_path_factory, cut):
    workdir = tmp_path_factory.mktemp('cut')
    write(workdir, 0, [1, 2, 3])
    path = workdir / 'metrics.jsonl'
    content = path.read_bytes()
    path.write_bytes(content[: -1 - cut])
    assert read_metrics(path) == [record(1), record(2)]
    assert write(workdir, 3, [4]) == lines(workdir) == [record(1), record(2), record(4)]


def test_no_file_no_records(tmp_path):
    assert read_metrics(tmp_path / 'metrics.jsonl') == []
