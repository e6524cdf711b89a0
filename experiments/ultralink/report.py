r"""Reports on conversations: how many, how long, and what became of each stage's items.

Writes DIR/report.md with the paper's tables beside one's own, and DIR/lengths.png; prints the
report. The files of the release are read with the stage `import` first.

Example:
    python -m experiments.ultralink report --input=data/pruned,data/fr/dialogues \
      --stages=data/fr/documents,data/fr/dialogues,data/pruned --tokenizer=llama2-13b \
      --output=data/report
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink.report import report
from malora_jax.ultralink.text.tokens import counter

_INPUT = flags.DEFINE_list('input', None, 'Directories of conversations.', required=True)
_STAGES = flags.DEFINE_list('stages', [], 'Directories of stages whose counts are shown.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the report.', required=True)
_TOKENIZER = flags.DEFINE_string('tokenizer', None, shared.TOKENIZER, required=True)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Reports.

    Raises:
        UserError: as `report`.
    """
    count = counter(_TOKENIZER.value or '')
    inputs, stages = shared.paths(_INPUT), shared.paths(_STAGES)
    print(report(inputs, count, shared.output(_OUTPUT), stages))
