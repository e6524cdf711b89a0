r"""Asks a chat model the problems of MGSM in one language, and prints its accuracy.

Every answer is kept in the cache, so no request is paid for twice. The endpoint's key is taken from
the environment, OPENAI_API_KEY.

Example:
    python -m experiments.ultralink mgsm --language=fr --input=mgsm_fr.tsv --llm=local:runs/fr \
      --output=results/mgsm_fr
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink.evaluation.mgsm import MgsmConfig, evaluate
from malora_jax.ultralink.manifest import Manifest

_LANGUAGE = flags.DEFINE_string('language', None, 'en, zh, ru, fr or es.', required=True)
_INPUT = flags.DEFINE_list('input', None, 'TSV file of the problems.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the answers.', required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.')
_CHOICE = shared.define_llm()
_FIELDS = shared.define_fields(
    MgsmConfig, max_tokens='The most of an answer.', temperature='Of what is drawn.'
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Evaluates, and prints the accuracy.

    Raises:
        UserError: as `evaluate` and `opened`.
    """
    total = _make().total
    right, missing = total.counts['right'], total.counts['no number']
    print(f'{right} of {total.kept} right, {right / total.kept:.1%}; {missing} without a number')


def _make() -> Manifest:
    output = shared.output(_OUTPUT)
    choice = _CHOICE(output)
    config = MgsmConfig(_LANGUAGE.value or '', **_FIELDS())
    return shared.ask(
        choice,
        lambda model: evaluate(
            config,
            model,
            shared.paths(_INPUT),
            output,
            seed=_SEED.value,
            concurrency=choice.concurrency,
        ),
    )
