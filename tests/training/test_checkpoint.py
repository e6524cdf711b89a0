import json
import re
import shutil
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_helpers import TASKS
from model_helpers import small_method, tiny_model
from optax import adamw

from malora_jax.adapters import trees
from malora_jax.data import get_task, get_template, split_task, train_iterator
from malora_jax.errors import UserError
from malora_jax.models.decoder import abstract_variables
from malora_jax.training.checkpoint import Checkpoints, has_checkpoint
from malora_jax.training.state import TrainState

CONFIG = small_method('malora', frozen=('core',))


@pytest.fixture(scope='module')
def splits():
    return [split_task(get_task(name), 0, 20, 4) for name in TASKS]


@pytest.fixture
def new_data(tiny_base, splits):
    def make():
        return train_iterator(
            splits,
            tiny_base.tokenizer,
            get_template('chatml'),
            sequence_length=64,
            batch_size=2,
            shares=(2.0, 1.0),
            seed=0,
        )

    return make


def random_state(step: int, seed: int) -> TrainState:
    """A state whose leaves are all random, the optimizer's moments too."""
    variables = nn.unbox(abstract_variables(tiny_model(CONFIG)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)

    adapter = jax.tree.map(draw, variables['adapter'])
    frozen = jax.tree.map(draw, variables['adapter_frozen'])
    moments = jax.tree.map(
        lambda leaf: draw(leaf) if leaf.ndim else jnp.int32(rng.integers(1, 100)),
        adamw(0.1).init(adapter),
    )
    return TrainState(jnp.int32(step), adapter, frozen, moments)


def assert_bit_equal(a, b):
    for (path, x), (_, y) in zip(trees.named_leaves(a), trees.named_leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def test_state_and_data_come_back_bit_by_bit(tmp_path, new_data):
    state, data = random_state(3, 0), new_data()
    for _ in range(3):
        next(data)
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(state, data)
    position = json.dumps(data.get_state(), sort_keys=True)
    following = [next(data) for _ in range(3)]

    fresh = new_data()
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        assert checkpoints.latest_step == 3
        restored = checkpoints.restore(random_state(0, 1), fresh)
    assert_bit_equal(restored, state)
    assert json.dumps(fresh.get_state(), sort_keys=True) == position
    for batch in following:
        again = next(fresh)
        for key, array in batch.items():
            np.testing.assert_array_equal(again[key], array)


def test_the_state_alone(tmp_path, new_data):
    state = random_state(5, 0)
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        checkpoints.save(state, new_data())
        assert_bit_equal(checkpoints.restore_state(random_state(0, 1)), state)


def test_what_is_saved_is_what_was_there_when_it_began(tmp_path, new_data):
    """Training goes on while it is written, with the state's buffers and with the data."""
    state, data = random_state(5, 0), new_data()
    kept = jax.device_get(state)
    position = json.dumps(data.get_state(), sort_keys=True)
    overwrite = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    fresh = new_data()
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        checkpoints.save(state, data)
        jax.block_until_ready(overwrite(state))
        next(data)
        checkpoints.wait()
        assert saved_steps(tmp_path / 'c') == [5]
        assert_bit_equal(checkpoints.restore(random_state(0, 1), fresh), kept)
    assert json.dumps(fresh.get_state(), sort_keys=True) == position


def test_what_cannot_be_written_later_is_told(tmp_path, new_data, monkeypatch):
    """The disk fails after the save has begun."""
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
        checkpoints.wait()
        data = new_data()

        async def save(directory):
            async def write():
                await directory.await_creation()
                raise OSError('[Errno 5] Input/output error')

            return write()

        monkeypatch.setattr(data, 'save', save)
        checkpoints.save(random_state(2, 2), data)
        message = r'Checkpoint .*/2 cannot be written \(.*Input/output error.*goes on from the one'
        with pytest.raises(OSError, match=message):
            checkpoints.save(random_state(3, 3), new_data())
    with Checkpoints(tmp_path / 'c') as checkpoints:
        assert_bit_equal(checkpoints.restore_state(random_state(0, 0)), random_state(1, 1))


def test_the_newest_ones_stay(tmp_path, new_data):
    data = new_data()
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        for step in (1, 2, 4, 7):
            checkpoints.save(random_state(step, step), data)
            assert checkpoints.latest_step == step
    assert sorted(path.name for path in (tmp_path / 'c').iterdir()) == ['4', '7']
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        assert_bit_equal(checkpoints.restore_state(random_state(0, 0)), random_state(7, 7))


def test_a_step_is_saved_once(tmp_path, new_data):
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        checkpoints.save(random_state(1, 0), new_data())
        checkpoints.save(random_state(1, 1), new_data())
        assert_bit_equal(checkpoints.restore_state(random_state(0, 2)), random_state(1, 0))


# The best one.


def saved_steps(directory) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir())


@pytest.fixture
def save_all(tmp_path, new_data):
    """Saves a state for each loss of a dict by step, in a new `Checkpoints` for each."""

    def save(losses: dict[int, float | None], keep: int) -> None:
        for step, loss in losses.items():
            with Checkpoints(tmp_path / 'c', keep) as checkpoints:
                checkpoints.save(random_state(step, step), new_data(), loss)

    return save


def test_the_best_one_stays_whatever_is_newer_and_however_often_it_is_opened(tmp_path, save_all):
    save_all({1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: None, 7: 4.0}, keep=2)
    assert saved_steps(tmp_path / 'c') == [2, 5, 7]
    for keep in (2, None):
        with Checkpoints(tmp_path / 'c', keep) as checkpoints:
            assert checkpoints.best == (2, 1.0)
            assert (checkpoints.chosen_step, checkpoints.latest_step) == (2, 7)
            state = checkpoints.restore_state(random_state(0, 0), checkpoints.chosen_step)
            assert_bit_equal(state, random_state(2, 2))
            assert_bit_equal(checkpoints.restore_state(random_state(0, 0)), random_state(7, 7))
    save_all({8: 0.5}, keep=2)
    assert saved_steps(tmp_path / 'c') == [7, 8]


def test_going_on_from_an_older_checkpoint_keeps_the_best(tmp_path, save_all):
    save_all({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, keep=1)
    assert saved_steps(tmp_path / 'c') == [2, 4]
    # As the message about a checkpoint that cannot be read has it.
    shutil.rmtree(tmp_path / 'c' / '4')
    with Checkpoints(tmp_path / 'c', 1) as checkpoints:
        assert checkpoints.latest_step == 2
        assert checkpoints.best == (2, 1.0)
    save_all({3: 2.0, 4: 2.5}, keep=1)
    assert saved_steps(tmp_path / 'c') == [2, 4]


def test_the_last_of_equals_is_the_best(tmp_path, save_all):
    save_all({1: 1.0, 2: 1.0, 3: None}, keep=1)
    assert saved_steps(tmp_path / 'c') == [2, 3]
    with Checkpoints(tmp_path / 'c', 1) as checkpoints:
        assert checkpoints.best == (2, 1.0)


def test_without_a_loss_the_newest_is_chosen(tmp_path, save_all):
    save_all({1: None, 2: None}, keep=1)
    with Checkpoints(tmp_path / 'c', 1) as checkpoints:
        assert checkpoints.best is None
        assert checkpoints.chosen_step == 2


def test_no_checkpoint(tmp_path, new_data):
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        for restore in (
            lambda: checkpoints.restore(random_state(0, 0), new_data()),
            lambda: checkpoints.restore_state(random_state(0, 0)),
        ):
            with pytest.raises(UserError) as caught:
                restore()
            assert str(caught.value) == f'There is no checkpoint in {tmp_path / "c"}.'


def test_nothing_runs_in_the_background_once_it_is_open(tmp_path):
    """Or a run that ends at once with a message would end with a thread's traceback too."""
    threads = {*threading.enumerate()}
    with Checkpoints(tmp_path / 'checkpoints', keep=2):
        assert not {*threading.enumerate()} - threads


# One that is not whole.


def cut(folder):
    """The largest file to half of its size."""
    largest = max((path for path in folder.rglob('*') if path.is_file()), key=_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip(folder):
    """One bit in the middle of the largest file, which holds the arrays."""
    largest = max((path for path in folder.rglob('*') if path.is_file()), key=_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def halve(folder):
    """Half of its files are gone."""
    for path in sorted(path for path in (folder / 'state').rglob('*') if path.is_file())[::2]:
        path.unlink()


def _size(path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize('damage', [cut, flip, halve])
def test_a_broken_checkpoint_is_put_aside_and_the_one_before_is_taken(
    tmp_path, new_data, damage, capsys
):
    directory, data = tmp_path / 'c', new_data()
    with Checkpoints(directory, keep=2) as checkpoints:
        for step in (1, 2):
            next(data)
            checkpoints.save(random_state(step, step), data)
    expected = next(new_data())
    second = list(zip(range(2), new_data(), strict=False))[1][1]
    damage(directory / '2')
    with Checkpoints(directory, keep=2) as checkpoints:
        fresh = new_data()
        assert_bit_equal(checkpoints.restore(random_state(0, 0), fresh), random_state(1, 1))
        assert checkpoints.latest_step == 1
        found = next(fresh)
        np.testing.assert_array_equal(found['inputs'], second['inputs'])
        assert not np.array_equal(found['inputs'], expected['inputs'])
        line = capsys.readouterr().out
        assert re.fullmatch(
            rf'Checkpoint {directory}/2 (cannot be read\.|is damaged: \S+ is not as saved\.) It is '
            r'put aside as broken-2; the one before is taken\.\n',
            line,
        )
        # Its place can be taken again.
        checkpoints.save(random_state(2, 5), fresh)
    assert sorted(path.name for path in directory.iterdir()) == ['1', '2', 'broken-2']


def test_the_same_step_may_break_again(tmp_path, new_data):
    directory = tmp_path / 'c'
    for _ in range(2):
        with Checkpoints(directory, keep=2) as checkpoints:
            for step in (1, 2):
                checkpoints.save(random_state(step, step), new_data())
        halve(directory / '2')
        with Checkpoints(directory, keep=2) as checkpoints:
            checkpoints.restore(random_state(0, 0), new_data())
    assert sorted(path.name for path in directory.iterdir()) == ['1', 'broken-2', 'broken-2-2']


def test_where_none_can_be_read_all_stay(tmp_path, new_data):
    """As with a state of another shape: the fault is not theirs."""
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(random_state(step, step), new_data())
    other = random_state(0, 0).replace(adapter={'other': jnp.zeros(3)})
    with (
        Checkpoints(directory, keep=3) as checkpoints,
        pytest.raises(UserError, match=f'Checkpoint {directory}/3 cannot be read.'),
    ):
        checkpoints.restore(other, new_data())
    assert saved_steps(directory) == [1, 2, 3]


def test_a_flipped_bit_in_the_only_checkpoint_is_named(tmp_path, new_data):
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
    flip(directory / '1')
    message = f'Checkpoint {directory}/1 '
    with Checkpoints(directory, keep=2) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(random_state(0, 0), new_data())
    assert (directory / '1').is_dir(), 'the last one there is stays where it is'


def test_a_checkpoint_without_sums_is_read(tmp_path, new_data):
    """As runs have them that are older."""
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
    shutil.rmtree(directory / '1' / 'sums')
    with Checkpoints(directory, keep=2) as checkpoints:
        assert_bit_equal(checkpoints.restore(random_state(0, 0), new_data()), random_state(1, 1))


# In a bucket, where nothing is renamed: a checkpoint counts once its last object is there.


@pytest.fixture
def in_bucket(bucket, request):
    from etils import epath

    return epath.Path(bucket) / request.node.name / 'checkpoints'


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_in_a_bucket_state_and_data_come_back_and_the_newest_stay(in_bucket, new_data):
    assert not has_checkpoint(in_bucket)
    data = new_data()
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        for step in (1, 2, 4):
            next(data)
            checkpoints.save(random_state(step, step), data, float(step))
    assert names(in_bucket) == ['1', '2', '4'], 'the best, and the two newest'
    assert has_checkpoint(in_bucket)
    fresh = new_data()
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        assert checkpoints.best == (1, 1.0)
        assert_bit_equal(checkpoints.restore(random_state(0, 0), fresh), random_state(4, 4))
    np.testing.assert_array_equal(next(fresh)['inputs'], next(data)['inputs'])


def test_in_a_bucket_one_that_a_kill_cut_off_does_not_count(in_bucket, new_data):
    data = new_data()
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(random_state(step, step), data)
    (in_bucket / '2' / 'commit_success.txt').unlink()
    with Checkpoints(in_bucket) as checkpoints:
        assert checkpoints.latest_step == 1
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        assert_bit_equal(checkpoints.restore(random_state(0, 0), data), random_state(1, 1))
        checkpoints.save(random_state(2, 5), data)
        assert_bit_equal(checkpoints.restore_state(random_state(0, 0)), random_state(2, 5))
    assert names(in_bucket) == ['1', '2']


def test_in_a_bucket_a_broken_one_is_put_aside(in_bucket, new_data, capsys):
    data = new_data()
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(random_state(step, step), data)
    for path in (in_bucket / '2' / 'state' / 'd').iterdir():
        path.unlink()
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        assert_bit_equal(checkpoints.restore(random_state(0, 0), data), random_state(1, 1))
    assert names(in_bucket) == ['1', 'broken-2']
    assert capsys.readouterr().out == (
        f'Checkpoint {in_bucket}/2 cannot be read. It is put aside as broken-2; the one before is '
        'taken.\n'
    )
