r"""Cuts translations to a budget for each language and skill.

In every language but English, near-duplicates are taken out, and a random sample of the rest is
kept: 32,000 conversations about maths and 16,000 about code, as in the paper. Prints what became of
the rows of each language and subset.

Example:
    python -m experiments.ultralink prune --input=data/fr/translated,data/zh/translated \
      --output=data/pruned
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink import prune, stage

_INPUT = flags.DEFINE_list('input', None, 'Directories of conversations.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for those kept.', required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.')
_FIELDS = shared.define_fields(
    prune.PruneConfig,
    math='The most of a language; 0 = all.',
    code='The same.',
    chat_agnostic='The same.',
    chat_specific='The same.',
    least_similarity='Of near-duplicates, from 0 to 1.',
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Prunes, and prints what was kept.

    Raises:
        UserError: as `prune.prune`.
    """
    config = prune.PruneConfig(**_FIELDS())
    inputs, output = shared.paths(_INPUT), shared.output(_OUTPUT)
    manifest = prune.prune(config, inputs, output, seed=_SEED.value)
    print(stage.describe(manifest), prune.table(manifest), sep='\n\n')
