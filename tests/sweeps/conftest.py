import functools

import optax
import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope='session')
def tiny_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'tiny.gguf'
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope='module')
def smooth_adam():
    """Raise AdamW's epsilon from 1e-8 to 1e-5, so that updates hardly depend on rounding.

    With the default, an entry whose gradient is little more than a rounding error gets a whole
    update of either sign.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax, 'adamw', functools.partial(optax.adamw, eps=1e-5))
        yield
