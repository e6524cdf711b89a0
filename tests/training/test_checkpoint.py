import dataclasses
import json
import re
import shutil
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import adamw
from orbax.checkpoint import v1 as ocp

from malora_jax.adapters import trees
from malora_jax.data import get_task, get_template, train_iterator
from malora_jax.errors import UserError
from malora_jax.models.decoder import abstract_variables
from malora_jax.training import manifest
from malora_jax.training.checkpoint import Checkpoints, latest_checkpoint
from malora_jax.training.checkpoint_reader import DamagedCheckpointError
from malora_jax.training.identity import RunIdentity
from malora_jax.training.manifest import CheckpointManifest
from malora_jax.training.state import TrainState
from tests.helpers.models import small_method, tiny_model
from tests.helpers.runs import TASKS

CONFIG = small_method('malora', frozen=('core',))


@pytest.fixture(scope='module')
def splits():
    return [get_task(name).split(0, 20, 4) for name in TASKS]


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
    """Return a state whose leaves are all random, including the optimizer's moments."""
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
    """During the save, training continues and reuses the state's buffers and the data iterator."""
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
    """The disk fails after the save has started."""
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
        message = r'Checkpoint .*/2 cannot be written \(.*Input/output error.*resumes from the'
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


# The best checkpoint.


def saved_steps(directory) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir())


@pytest.fixture
def save_all(tmp_path, new_data):
    """Function that saves a state for each loss by step, each with a new `Checkpoints`."""

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
            assert (checkpoints.best_or_latest_step, checkpoints.latest_step) == (2, 7)
            state = checkpoints.restore_state(random_state(0, 0), checkpoints.best_or_latest_step)
            assert_bit_equal(state, random_state(2, 2))
            assert_bit_equal(checkpoints.restore_state(random_state(0, 0)), random_state(7, 7))
    save_all({8: 0.5}, keep=2)
    assert saved_steps(tmp_path / 'c') == [7, 8]


def test_going_on_from_an_older_checkpoint_keeps_the_best(tmp_path, save_all):
    save_all({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, keep=1)
    assert saved_steps(tmp_path / 'c') == [2, 4]
    # The message about an unreadable checkpoint suggests this.
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
        assert checkpoints.best_or_latest_step == 2


def test_no_checkpoint(tmp_path, new_data):
    with Checkpoints(tmp_path / 'c', keep=2) as checkpoints:
        for restore in (
            lambda: checkpoints.restore(random_state(0, 0), new_data()),
            lambda: checkpoints.restore_state(random_state(0, 0)),
        ):
            with pytest.raises(UserError) as caught:
                restore()
            assert str(caught.value) == (
                f'There is no checkpoint in {tmp_path / "c"}: resume the training.'
            )


def test_nothing_runs_in_the_background_once_it_is_open(tmp_path):
    """Otherwise a run that ends early with a message could also print a thread's traceback."""
    threads = {*threading.enumerate()}
    with Checkpoints(tmp_path / 'checkpoints', keep=2):
        assert not {*threading.enumerate()} - threads


# Incomplete and damaged checkpoints.


def cut(folder):
    """Truncate the largest file to half of its size."""
    largest = max((path for path in folder.rglob('*') if path.is_file()), key=_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip(folder):
    """Flip one bit in the middle of the largest file, which holds the arrays."""
    largest = max((path for path in folder.rglob('*') if path.is_file()), key=_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def halve(folder):
    """Remove half of the checkpoint's files."""
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
            rf'Checkpoint {directory}/2 (cannot be read\.|is damaged: \S+ does not match its '
            r'checksum\.) It was renamed to broken-2; the run resumes from an older checkpoint\.\n',
            line,
        )
        # Its step can be saved again.
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
    """The checkpoints are intact: the state that they are restored into has another shape."""
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


# The manifest.

OURS = RunIdentity({'seed': 0, 'training.steps': 9}, {'mine.jsonl': 'a1'}, 'b1')


def without_manifest(folder, sums: bool, state: TrainState, data) -> None:
    """Turn a checkpoint into one from before manifests, with or without checksums of arrays."""
    shutil.rmtree(folder / 'manifest')
    if not sums:
        return
    number = {
        path: int(np.asarray(leaf).view(np.uint32).sum(dtype=np.uint32))
        for path, leaf in manifest._arrays(state)
    }
    value = {'state': number, 'data': manifest._position_digests(data)}
    with ocp.training.Checkpointer(folder.parent / 'sums') as other:
        other.save_checkpointables(1, {'sums': value})
    other_folder = folder.parent / 'sums' / '1'
    (other_folder / 'sums').rename(folder / 'sums')
    ours, theirs = (
        json.loads((each / '_CHECKPOINT_METADATA').read_text()) for each in (folder, other_folder)
    )
    del ours['item_handlers']['manifest']
    ours['item_handlers'] |= theirs['item_handlers']
    (folder / '_CHECKPOINT_METADATA').write_text(json.dumps(ours))
    shutil.rmtree(folder.parent / 'sums')


@pytest.mark.parametrize('sums', [True, False])
def test_a_checkpoint_from_before_manifests_is_read(tmp_path, new_data, sums):
    directory, state = tmp_path / 'c', random_state(1, 1)
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(state, new_data())
    without_manifest(directory / '1', sums, state, new_data())
    assert latest_checkpoint(directory) == (1, None)
    with Checkpoints(directory, keep=2, identity=OURS) as checkpoints:
        assert_bit_equal(checkpoints.restore(random_state(0, 0), new_data()), state)


def test_sums_of_words_are_still_checked(tmp_path, new_data):
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
    without_manifest(directory / '1', True, random_state(1, 2), new_data())
    with (
        Checkpoints(directory, keep=2) as checkpoints,
        pytest.raises(DamagedCheckpointError, match=r'c/1 is damaged: adapter/\S+ does not match'),
    ):
        checkpoints.restore(random_state(0, 0), new_data())


def test_permuted_words_are_damage(new_data):
    """Permuted words have the same sum, so only a hash detects them."""
    state, data = random_state(1, 1), new_data()
    saved = CheckpointManifest.from_state(state, data, None)
    assert saved.first_difference(state, data) is None

    def permuted(path, leaf):
        return leaf[..., ::-1] if 'down' in jax.tree_util.keystr(path) else leaf

    other = jax.tree_util.tree_map_with_path(permuted, state)
    assert re.search('down', saved.first_difference(other, data))
    sums = [{p: manifest._sum(a) for p, a in manifest._arrays(each)} for each in (state, other)]
    assert sums[0] == sums[1], 'or this test would show nothing'


def test_a_position_in_the_data_that_is_not_as_saved_is_damage(new_data):
    state, data = random_state(1, 1), new_data()
    saved = CheckpointManifest.from_state(state, data, None)
    next(data)
    assert saved.first_difference(state, data) == 'the position in the data'


def test_the_identity_comes_back(tmp_path, new_data):
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2, identity=OURS) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
    assert latest_checkpoint(directory) == (1, OURS)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'config': {**OURS.config, 'seed': 1}}, 'c/2 holds a run with another seed'),
        ({'config': {**OURS.config, 'more': 1}}, 'c/2 holds a run with another more'),
        ({'config': {'training.steps': 9}}, r'c/2 holds a run with fields .* lacks \(seed\)'),
        (
            {'data': {'mine.jsonl': 'a2'}},
            'mine.jsonl has changed since the run in .*c/2 was started',
        ),
        (
            {'base': 'b2'},
            'c/2 was trained on another base model: its fingerprint is b1, .* these .* is b2',
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_stays(tmp_path, new_data, change, message):
    directory = tmp_path / 'c'
    for step in (1, 2):
        identity = OURS if step == 2 else dataclasses.replace(OURS, **change)
        with Checkpoints(directory, keep=2, identity=identity) as checkpoints:
            checkpoints.save(random_state(step, step), new_data())
    with Checkpoints(directory, 2, dataclasses.replace(OURS, **change)) as checkpoints:
        for restore in (
            lambda: checkpoints.restore(random_state(0, 0), new_data()),
            lambda: checkpoints.restore_state(random_state(0, 0)),
        ):
            with pytest.raises(UserError, match=message) as caught:
                restore()
            assert not isinstance(caught.value, DamagedCheckpointError)
    assert saved_steps(directory) == [1, 2]


def test_fields_that_may_change_do_not_matter(tmp_path, new_data):
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2, identity=OURS) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
    longer = dataclasses.replace(OURS, config={**OURS.config, 'training.steps': 20})
    with Checkpoints(directory, keep=2, identity=longer) as checkpoints:
        assert_bit_equal(checkpoints.restore(random_state(0, 0), new_data()), random_state(1, 1))


def test_a_format_from_the_future_is_refused(tmp_path, new_data, monkeypatch):
    directory = tmp_path / 'c'
    monkeypatch.setattr(manifest, 'FORMAT', 2)
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(random_state(1, 1), new_data())
    monkeypatch.setattr(manifest, 'FORMAT', 1)
    message = f'Checkpoint {directory}/1 has format 2, and this version .* up to 1: update'
    with pytest.raises(UserError, match=message):
        latest_checkpoint(directory)
    with (
        Checkpoints(directory, keep=2) as checkpoints,
        pytest.raises(UserError, match=message),
    ):
        checkpoints.restore(random_state(0, 0), new_data())


def test_a_manifest_that_is_none_is_damage(tmp_path, new_data):
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(random_state(step, step), new_data())
    file = directory / '2' / 'manifest' / 'data.json'
    for content in ('[]', '{}', '{"format": "x"}', '', 'nothing'):
        file.write_text(content)
        assert latest_checkpoint(directory) == (1, None), content
        with (
            Checkpoints(directory, keep=2) as checkpoints,
            pytest.raises(DamagedCheckpointError, match=f'Checkpoint {directory}/2 '),
        ):
            checkpoints.restore_state(random_state(0, 0))


def test_metadata_that_are_none_are_named(tmp_path, new_data):
    directory = tmp_path / 'c'
    with Checkpoints(directory, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(random_state(step, step), new_data())
    (directory / '2' / '_CHECKPOINT_METADATA').write_text('[]')
    message = rf'{directory}/2/_CHECKPOINT_METADATA.*: move {directory}/2 elsewhere to continue'
    for keep in (2, None):
        with pytest.raises(UserError, match=message):
            Checkpoints(directory, keep)
    (directory / '2').rename(tmp_path / 'elsewhere')
    with Checkpoints(directory, keep=2) as checkpoints:
        assert_bit_equal(checkpoints.restore(random_state(0, 0), new_data()), random_state(1, 1))


# In a bucket, nothing can be renamed: a checkpoint counts once its last object exists.


@pytest.fixture
def in_bucket(bucket, request):
    from etils import epath

    return epath.Path(bucket) / request.node.name / 'checkpoints'


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_in_a_bucket_state_and_data_come_back_and_the_newest_stay(in_bucket, new_data):
    assert latest_checkpoint(in_bucket) is None
    data = new_data()
    with Checkpoints(in_bucket, keep=2) as checkpoints:
        for step in (1, 2, 4):
            next(data)
            checkpoints.save(random_state(step, step), data, float(step))
    assert names(in_bucket) == ['1', '2', '4'], 'the best, and the two newest'
    assert latest_checkpoint(in_bucket) == (4, None)
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
        f'Checkpoint {in_bucket}/2 cannot be read. It was renamed to broken-2; the run resumes '
        'from an older checkpoint.\n'
    )
