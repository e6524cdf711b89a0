"""Goodput accounting, on handmade events with known durations."""

import pytest

from malora_jax.errors import UserError
from malora_jax.training import goodput
from malora_jax.training.goodput import GoodputRecorder


def events_of(*lines):
    """Return events from (seconds, kind, name).

    The kinds are 'begin' and 'end' of a phase, 'step' with a number, 'job' and 'over'.
    """
    found = []
    for now, kind, name in lines:
        if kind in ('job', 'over'):
            found.append({f'job_{"start" if kind == "job" else "end"}_time': now})
        elif kind == 'step':
            found.append({'step_count': name, 'step_start_time': now})
        else:
            side = 'start' if kind == 'begin' else 'end'
            key = {'load': 'training_prep', 'data wait': 'data_loading', 'start': 'tpu_init'}
            base = key.get(name, 'custom_badput_event')
            more = {} if name in key else {'custom_badput_event_type': name}
            found.append(more | {f'{base}_{side}_time': now})
    return found


def test_every_second_is_accounted_for():
    """There are two starts; the first is killed in step 4, and steps 3 and 4 are repeated."""
    events = events_of(
        (100.0, 'job', ''),
        (101.0, 'begin', 'load'),
        (105.0, 'end', 'load'),
        (105.0, 'begin', 'compile'),
        (115.0, 'end', 'compile'),
        (115.5, 'begin', 'data wait'),
        (116.0, 'end', 'data wait'),
        (116.0, 'step', 1),
        (120.0, 'step', 2),
        (124.0, 'begin', 'save'),
        (126.0, 'end', 'save'),
        (126.0, 'step', 3),
        (130.0, 'step', 4),
        (131.0, 'begin', 'data wait'),
        # Killed here, and restarted seven seconds later.
        (138.0, 'job', ''),
        (140.0, 'begin', 'load'),
        (143.0, 'end', 'load'),
        (143.0, 'step', 3),
        (147.0, 'step', 4),
        (151.0, 'begin', 'evaluate'),
        (160.0, 'end', 'evaluate'),
        (161.0, 'over', ''),
    )
    spent = goodput.seconds_by_activity(events)
    assert spent == pytest.approx(
        {
            'step': 4 + 4 + 4 + (4 + 1),  # The last second is before the end of the job.
            'load': 4 + 3,
            'compile': 10,
            'data wait': 0.5,
            'save': 2,
            'evaluate': 9,
            'lost': 4 + 1,
            'stopped': 7,
            'other': 1 + 0.5 + 2,
        }
    )
    assert sum(spent.values()) == pytest.approx(161 - 100)
    line = goodput.describe(spent)
    assert line.startswith('Goodput 28%: training steps took 17.0 of 61.0 s; compile 10.0, ')
    assert line.endswith('.')


def test_a_phase_within_a_phase_counts_once():
    events = events_of(
        (0.0, 'job', ''),
        (0.0, 'begin', 'load'),
        (1.0, 'begin', 'save'),
        (3.0, 'end', 'save'),
        (4.0, 'end', 'load'),
        (4.0, 'over', ''),
    )
    spent = goodput.seconds_by_activity(events)
    assert spent['load'] == 2
    assert spent['save'] == 2
    assert sum(spent.values()) == 4


def test_what_is_written_is_what_is_read(tmp_path):
    """Events from before the file existed are kept, and a truncated line is dropped."""
    record = GoodputRecorder()
    with record.phase('start'):
        pass
    record.open(tmp_path)
    record.record_step(1)
    with record.phase('save'):
        pass
    record.close()
    with (tmp_path / goodput.FILE).open('a') as file:
        file.write('{"step_count": 2, "step_st')
    again = GoodputRecorder()
    again.open(tmp_path)  # The next start appends after the last complete line.
    again.close()
    events = goodput.read(tmp_path)
    assert [next(reversed(event)) for event in events[-2:]] == ['job_start_time', 'job_end_time']
    events = events[:-2]
    assert [next(reversed(event)) for event in events] == [
        'job_start_time',
        'tpu_init_start_time',
        'tpu_init_end_time',
        'step_start_time',
        'custom_badput_event_start_time',
        'custom_badput_event_end_time',
        'job_end_time',
    ]
    assert events[4]['custom_badput_event_type'] == 'save'
    times = [next(reversed(event.values())) for event in events]
    assert times == sorted(times)


def test_a_clock_that_is_set_back_takes_no_time_away():
    events = events_of(
        (100.0, 'job', ''), (101.0, 'step', 1), (50.0, 'begin', 'save'), (52.0, 'end', 'save')
    )
    spent = goodput.seconds_by_activity(events)
    assert spent['save'] == 2.0 and spent['other'] == 1.0 and min(spent.values()) == 0.0


@pytest.mark.parametrize(
    'line', ['{}', '[]', '1', '{"step_count": 1}', '{"a_time": "x"}', '{"a_time": 1, "b_time": 2}']
)
def test_a_line_that_is_no_event_is_named(tmp_path, line):
    path = tmp_path / goodput.FILE
    path.write_text('{"job_start_time": 1.0}\n' + line + '\n{"torn')
    for read in (goodput.read, GoodputRecorder().open):
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        told = str(caught.value)
        assert told.startswith(f'{path}:2')
        assert told.endswith(f': remove {path}, which only records how time was spent.')
