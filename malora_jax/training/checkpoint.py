"""Checkpoints of adapter, optimizer, step and data position; never of the base."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
from orbax.checkpoint import v1 as ocp

from malora_jax import errors, files
from malora_jax.data import RowStreams
from malora_jax.distributed import hosts
from malora_jax.training.identity import Identity
from malora_jax.training.manifest import JSONItem, Manifest
from malora_jax.training.state import TrainState

# Room for what is beside the arrays; they are compressed a little.
_METADATA_BYTES = 1 << 20
_MANIFEST = 'manifest'
# What stood in its place in earlier checkpoints.
_SUMS = 'sums'


class DamagedError(errors.UserError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


class Best(NamedTuple):
    """The checkpoint with the lowest validation loss, and that loss."""

    step: int
    loss: float


class Newest(NamedTuple):
    """The newest checkpoint of a run.

    Attributes:
        step: Its step.
        identity: Identity of its run; None if it has none, or cannot be read.
    """

    step: int
    identity: Identity | None


class _Writing(NamedTuple):
    """A checkpoint that is being written: its step, and Orbax's answer when it is."""

    step: int
    response: Any


class Checkpoints:
    """The checkpoints of one run; a context manager.

    Orbax writes to a temporary folder and renames it, so one that a kill interrupted does not
    count; the oldest are removed once there are more than `keep`, the best one excepted.
    """

    def __init__(
        self, directory: pathlib.Path, keep: int | None = None, identity: Identity | None = None
    ):
        """Opens the checkpoints of a run.

        Args:
            directory: where they are.
            keep: how many of the newest stay; None to read only, which changes nothing, not even
                what a trainer that is still running is about to save.
            identity: Identity of the run. It is saved with each checkpoint, and a checkpoint of
                another run is not restored. None to restore whatever there is.

        Raises:
            UserError: there is no such directory to read.
        """
        if keep is None and not directory.is_dir():
            raise errors.UserError(f'There are no checkpoints: {directory} does not exist.')
        policies = ocp.training.preservation_policies
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=_goodness, n=1, keep_checkpoints_without_metrics=False)
        kept = policies.AnyPreservationPolicy([newest, best]) if keep else policies.PreserveAll()
        # In a bucket (see `buckets.home`) it is absolute, and no Path.
        self._is_on_disk = isinstance(directory, pathlib.Path)
        self._directory = directory.absolute() if self._is_on_disk else directory
        threads = {*threading.enumerate()}
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self._directory,
                # The loop decides when to save.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=kept,
                cleanup_tmp_directories=keep is not None,
            )
        except Exception as error:  # Orbax reads the metadata of all checkpoints.
            _check_metadata(self._directory)
            raise errors.UserError(
                f'Checkpoints in {directory} cannot be read ({error}).'
            ) from error
        self._identity = identity
        self._writing: _Writing | None = None
        # Orbax removes them in a thread that close() does not wait for, and that starts others: a
        # run that ends at once with a message would end with a thread's traceback too.
        # Threads of a bucket's client never end; there the first save waits for the removal.
        while self._is_on_disk and (started := {*threading.enumerate()} - threads):
            for thread in started:
                if thread.is_alive():  # One that is just starting cannot be waited for yet.
                    thread.join()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.wait()
        except OSError:
            if kind is None:  # Else there is an error to tell of already.
                raise
        finally:
            # It tells once more of what could not be written.
            with contextlib.suppress(Exception):
                self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in their order."""
        return sorted(each.step for each in self._checkpointer.checkpoints)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best(self) -> Best | None:
        """The best of the checkpoints there are, or None if none has a validation loss."""
        measured = [each for each in self._checkpointer.checkpoints if each.metrics]
        if not measured:
            return None
        # The last of equals, as Orbax has it.
        best = sorted(measured, key=lambda each: _goodness(each.metrics))[-1]
        return Best(best.step, best.metrics['validation_loss'])

    @property
    def chosen_step(self) -> int | None:
        """The step whose state stands for the run: the best, or the newest if none was measured."""
        return self.best.step if self.best else self.latest_step

    def save(
        self, state: TrainState, data: RowStreams, validation_loss: float | None = None
    ) -> None:
        """Begins to save; returns when the state is copied and its buffers may be used again.

        It is written while the next steps are made; `wait` tells that it is on disk.

        Args:
            state: what is saved.
            data: its position is saved with it.
            validation_loss: of the state, if it was measured.

        Raises:
            OSError: it, or the one before, cannot be written; those before are as they were.
        """
        self.wait()
        step = int(state.step)
        if step == self.latest_step:
            return
        self.check_room(state)
        manifest = JSONItem(dataclasses.asdict(Manifest.of(state, data, self._identity)))
        metrics = None if validation_loss is None else {'validation_loss': validation_loss}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, {'state': state, 'data': data, _MANIFEST: manifest}, metrics=metrics
            )
        except Exception as error:  # The storage's errors are of many types.
            self._fail(step, error)
        self._writing = _Writing(step, response)

    def wait(self) -> None:
        """Returns when what was saved is on disk.

        Raises:
            OSError: it cannot be written; the checkpoints before it are as they were.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.response.result()
            except Exception as error:
                self._fail(writing.step, error)

    def _fail(self, step: int, error: Exception) -> NoReturn:
        cause = str(error).rsplit(': ', 1)[-1] or type(error).__name__
        raise OSError(
            f'Checkpoint {self._directory / str(step)} cannot be written ({cause}); the same '
            'command goes on from the one before.'
        ) from error

    def check_room(self, state: TrainState) -> None:
        """Checks that a checkpoint of the state fits on the disk.

        Where it does not, the storage would say so too, but with the tracebacks of its threads.

        Raises:
            OSError: it does not, in megabytes.
        """
        if not self._is_on_disk:
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _METADATA_BYTES
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(
                f'A checkpoint needs {needed / 1e6:.1f} MB and {self._directory} has '
                f'{free / 1e6:.1f} MB free: make room; the same command goes on from the last one.'
            )

    def restore(self, state: TrainState, data: RowStreams) -> TrainState:
        """The state of the newest checkpoint that is whole; `data` is moved to where it was.

        Newer ones, which are broken, are put aside as `broken-STEP`; but only once an older one is
        read: what keeps all of them from being read is no fault of theirs.

        Args:
            state: a fresh state of the same run, for its shapes.
            data: a fresh iterator of the same run.

        Raises:
            UserError: there is no checkpoint, none can be read, or one is of another run.
        """
        wanted = {'state': _shapes(state), 'data': data}
        steps = self.steps[::-1]
        broken: dict[int, DamagedError] = {}
        for step in steps:
            try:
                found = self._load(step, wanted)['state']
            except DamagedError as error:
                broken[step] = error
                continue
            self._put_aside(broken)
            return found
        raise broken[steps[0]] if steps else self._nothing()

    def _put_aside(self, broken: Mapping[int, DamagedError]) -> None:
        for step, error in broken.items():
            again = (f'broken-{step}-{number}' for number in itertools.count(2))
            names = itertools.chain([f'broken-{step}'], again)
            aside = next(name for name in names if not (self._directory / name).exists())
            hosts.meet(f'put aside {step}')
            if hosts.is_first():
                (self._directory / str(step)).rename(self._directory / aside)
            hosts.say(f'{error} It is put aside as {aside}; the one before is taken.')
        if broken:
            hosts.meet('put aside')
            self._checkpointer.reload()

    def best_state(self, state: TrainState) -> TrainState:
        """The state of the best checkpoint; the given one if that is it, or none was measured."""
        best = self.best
        if best is None or best.step == int(state.step):
            return state
        return self.restore_state(state, best.step)

    def restore_state(self, state: TrainState, step: int | None = None) -> TrainState:
        """The state alone, of the newest checkpoint or another.

        Raises:
            UserError: there is no checkpoint, it cannot be read, or it is of another run.
        """
        step = step or self.latest_step
        if step is None:
            raise self._nothing()
        try:
            return self._load(step, {'state': _shapes(state)})['state']
        except DamagedError as error:
            raise DamagedError(f'{error} Without that folder another one is taken.') from error

    def _nothing(self) -> errors.UserError:
        return errors.UserError(f'There is no checkpoint in {self._directory}.')

    def identity_of(self, step: int) -> Identity | None:
        """Return the identity of the run that a checkpoint belongs to, if it has one.

        Raises:
            UserError: The manifest cannot be read, or has a format that is not known.
        """
        manifest = self._manifest(step)
        return manifest.run if manifest else None

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        self.wait()
        manifest = self._manifest(step)
        if self._identity and manifest and manifest.run:
            self._identity.check(manifest.run, self._name(step))
        found = self._read(step, wanted)
        different = manifest and manifest.first_difference(found['state'], wanted.get('data'))
        if different:
            raise DamagedError(f'{self._name(step)} is damaged: {different} is not as saved.')
        return found

    def _manifest(self, step: int) -> Manifest | None:
        """Return the manifest of a checkpoint; None if it is older than these and their sums."""
        folder = self._directory / str(step)
        if not (folder / _MANIFEST).exists():
            if not (folder / _SUMS).exists():
                return None
            sums = self._read(step, {_SUMS: None})[_SUMS]
            return Manifest(0, None, sums['state'], sums['data'])
        item = JSONItem()
        self._read(step, {_MANIFEST: item})
        try:
            return Manifest.from_json(item.value, self._name(step))
        except (KeyError, TypeError) as error:
            raise DamagedError(f'{self._name(step)} is damaged: its manifest is none.') from error

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        try:
            with _quiet_if_it_fails():
                return self._checkpointer.load_checkpointables(step, wanted)
        except Exception as error:  # Whatever Orbax or the file system finds wrong.
            raise DamagedError(f'{self._name(step)} cannot be read.') from error

    def _name(self, step: int) -> str:
        return f'Checkpoint {self._directory / str(step)}'


def newest_checkpoint(directory: pathlib.Path) -> Newest | None:
    """Return the newest checkpoint in a directory, which need not exist; None if there is none.

    Raises:
        UserError: It has a format that is not known.
    """
    if not directory.is_dir():
        return None
    with Checkpoints(directory) as checkpoints:
        for step in checkpoints.steps[::-1]:
            with contextlib.suppress(DamagedError):
                return Newest(step, checkpoints.identity_of(step))
        latest = checkpoints.latest_step
        return None if latest is None else Newest(latest, None)


def _check_metadata(directory: pathlib.Path) -> None:
    """Check the files without which not even the list of checkpoints can be read.

    Raises:
        UserError: One of them is broken.
    """
    for path in sorted(directory.glob('[0-9]*/_CHECKPOINT_METADATA')):
        remedy = f'move {path.parent} elsewhere to continue from the checkpoint before it'
        files.read_json(path, dict, remedy)


@contextlib.contextmanager
def _quiet_if_it_fails() -> Iterator[None]:
    """Keeps the threads of a load that fails from printing tracebacks beside its error.

    Orbax closes its event loop at the first array that cannot be read, and the reads of the others
    then find it closed.
    """
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if 'Event loop is closed' not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = report
    yield
    sys.unraisablehook = hook  # After an error it stays: their threads still run.


def _goodness(metrics: dict[str, float]) -> float:
    return -metrics['validation_loss']


def _shapes(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
