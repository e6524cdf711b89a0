r"""Translates English conversations and verifies each text.

A conversation is translated text by text. What has lost a number, the final answer, LaTeX, code, a
name of the code, or is in another language is asked for again, and then dropped with its
conversation. Prints how many were dropped for which reason, and how often each fault was found.

Every answer is kept in the cache, so no request is paid for twice. The endpoint's key is taken from
the environment, OPENAI_API_KEY.

Example:
    python -m experiments.ultralink translate --language=fr --input=data/en/math.jsonl --llm=MODEL \
      --base-url=http://127.0.0.1:8000/v1 --output=data/fr/translated
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink import stage
from malora_jax.ultralink.manifest import Manifest
from malora_jax.ultralink.translate import TranslateConfig, translate

_LANGUAGE = flags.DEFINE_string('language', None, 'zh, ru, fr or es.', required=True)
_INPUT = flags.DEFINE_list('input', None, 'Conversations in English.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the translations.', required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.')
_CHOICE = shared.define_llm()
_FIELDS = shared.define_fields(
    TranslateConfig,
    attempts='How often a text is tried.',
    max_tokens='The most of a translation.',
    temperature='Of what is drawn.',
    top_p='Of what is drawn.',
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Translates, and prints the counts.

    Raises:
        UserError: as `translate` and `opened`.
    """
    print(stage.describe(_make()))


def _make() -> Manifest:
    output = shared.output(_OUTPUT)
    choice = _CHOICE(output)
    config = TranslateConfig(_LANGUAGE.value or '', **_FIELDS())
    return shared.ask(
        choice,
        lambda model: translate(
            config,
            model,
            shared.paths(_INPUT),
            output,
            seed=_SEED.value,
            concurrency=choice.concurrency,
        ),
    )
