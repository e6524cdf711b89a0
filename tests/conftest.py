"""What all tests share."""

import pathlib
import sys

import jax
from absl import flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests' / 'fixtures'))

# Broadcasting arrays of different rank by accident is an error; so is a flag read before parsing.
jax.config.update('jax_numpy_rank_promotion', 'raise')
flags.FLAGS.mark_as_parsed()
