import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_jax.errors import UserError
from malora_jax.files import read_json_lines
from malora_jax.training.metrics import MetricWriter
from malora_jax.training.run_files import read_answers, read_metrics
from tests.training.helpers import read_scalars


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
    assert read_json_lines(tmp_path / 'metrics.jsonl') == lines(tmp_path)
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
    assert read_json_lines(path) == [record(1), record(2)]
    assert write(workdir, 2, [3]) == lines(workdir) == [record(1), record(2), record(3)]


@pytest.mark.parametrize('there', [0, 2])
def test_records_of_steps_before_the_checkpoint_must_be_there(tmp_path, there):
    if there:
        write(tmp_path, 0, range(1, there + 1))
    with pytest.raises(UserError) as caught:
        MetricWriter(tmp_path, 3)
    assert str(caught.value) == (
        f'{tmp_path / "metrics.jsonl"} has records of only {there} of the 3 steps up to the newest '
        'checkpoint: restore the file, or start a new run in another --workdir.'
    )
    assert not there or lines(tmp_path) == [record(1), record(2)]


def in_tensorboard(steps) -> dict[int, dict[str, float]]:
    """Return the records as TensorBoard holds them, in float32."""
    return {
        step: {tag: pytest.approx(value) for tag, value in record(step).items() if tag != 'step'}
        for step in steps
    }


@pytest.mark.parametrize('checkpoint', [0, 2, 4])
def test_tensorboard_shows_each_step_once(tmp_path, checkpoint):
    write(tmp_path, 0, [1, 2, 3, 4])
    assert read_scalars(tmp_path) == in_tensorboard([1, 2, 3, 4])
    # File names have a resolution of a second.
    (path,) = (tmp_path / 'tensorboard').iterdir()
    path.rename(path.with_name('events.out.tfevents.1.earlier'))
    write(tmp_path, checkpoint, [])
    assert read_scalars(tmp_path) == in_tensorboard(range(1, checkpoint + 1))
    write(tmp_path, checkpoint, range(checkpoint + 1, 7))
    assert read_scalars(tmp_path) == in_tensorboard(range(1, 7))


@pytest.mark.parametrize(
    'steps, expected',
    [
        ([1, 2, 2, 4], ':3 has step 2; it must have step 3: '),
        ([1, 3, 4], ':2 has step 3; it must have step 2: '),
        ([1, None, 3], ':2 has no step; it must have step 2: '),
        ([2, 1, 3], ':1 has step 2; it must have step 1: '),
        ([1, 10**4000, 3], ':2: step is a number of 13,288 bits; it must be a number: '),
    ],
)
def test_a_step_that_is_missing_or_there_twice_is_named(tmp_path, steps, expected):
    path = tmp_path / 'metrics.jsonl'
    rows = [{'loss': 1.0} | ({'step': step} if step else {}) for step in steps]
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    for read in (lambda: MetricWriter(tmp_path, len(steps)), lambda: read_metrics(path)):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == (
            f'{path}{expected}restore it from a copy, or start a new run in another --workdir.'
        )
    assert path.read_text().count('\n') == len(steps)


def test_each_held_out_question_has_one_answer(tmp_path):
    path = tmp_path / 'answers_before.jsonl'
    row = {'task': 'a', 'question': '?', 'expected': '1', 'answer': '1', 'score': 1.0}
    row |= {'nats': 1.0, 'tokens': 1}
    for count in (0, 1, 3):
        path.write_text(f'{json.dumps(row)}\n' * count)
        with pytest.raises(UserError) as caught:
            read_answers(path, {'a': 2, 'b': 0})
        assert str(caught.value) == (
            f"{path} has {count} answers of task 'a', which has 2 held-out questions: restore it "
            'from a copy, or start a new run in another --workdir.'
        )
    path.write_text(f'{json.dumps(row)}\n' * 2)
    assert [answer.task for answer in read_answers(path, {'a': 2, 'b': 0})] == ['a', 'a']
    path.write_text(f'{json.dumps(row | {"score": None})}\n' * 2)
    with pytest.raises(UserError, match=r':1: score is None; it must be a finite number'):
        read_answers(path, {'a': 2})
