r"""Keeps the English conversations that say the same in every language.

Those with links, too short or long, or in another language are dropped; of the others a model
scores seven criteria, such as names, places and brands, and one that meets any is dropped. Prints
how many for which.

Inputs: conversations as other stages have them, or ShareGPT's files (`id`, `conversations`), JSON
Lines or an array in a .json.

Every answer is kept in the cache, so no request is paid for twice. The endpoint's key is taken from
the environment, OPENAI_API_KEY.

Example:
    python -m experiments.ultralink criteria --input=sharegpt.json --llm=MODEL \
      --base-url=http://127.0.0.1:8000/v1 --output=data/en/chat
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink import stage
from malora_jax.ultralink.criteria import CriteriaConfig, criteria
from malora_jax.ultralink.manifest import Manifest

_INPUT = flags.DEFINE_list('input', None, 'Conversations in English.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for those kept.', required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.')
_CHOICE = shared.define_llm()
_FIELDS = shared.define_fields(
    CriteriaConfig,
    least_characters='Of a conversation.',
    most_characters='Of a conversation.',
    attempts='How often a conversation is tried.',
    temperature='Of what is drawn.',
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Filters, and prints the counts.

    Raises:
        UserError: as `criteria` and `opened`.
    """
    print(stage.describe(_make()))


def _make() -> Manifest:
    output = shared.output(_OUTPUT)
    choice = _CHOICE(output)
    config = CriteriaConfig(**_FIELDS())
    return shared.ask(
        choice,
        lambda model: criteria(
            config,
            model,
            shared.paths(_INPUT),
            output,
            seed=_SEED.value,
            concurrency=choice.concurrency,
        ),
    )
