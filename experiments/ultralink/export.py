r"""Writes conversations as the files of the released dataset, and for the trainer.

DIR has LANGUAGE_SUBSET.jsonl as released (`id`, `data`), and training/LANGUAGE.jsonl with all rows
of a language, as configs/ultralink_lm.py takes them. Prints the number of rows of each file.

Example:
    python -m experiments.ultralink export --input=data/pruned,data/fr/dialogues \
      --output=data/release
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink.release import export

_INPUT = flags.DEFINE_list('input', None, 'Directories of conversations.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'New directory for the files.', required=True)


def main() -> None:
    """Exports, and prints the counts.

    Raises:
        UserError: as `export`.
    """
    for name, count in export(shared.paths(_INPUT), shared.output(_OUTPUT)).items():
        print(f'{name}: {count:,} rows')
