r"""Has a model ask and answer questions about segments, turn by turn, in their own language.

A dialogue has 2 to 6 turns, by the paper's rule. Questions and answers that are cut short, in
another language, speak of "the text", do not stand alone or were asked before are tried again; then
the dialogue ends at its last good turn, or is dropped. Prints how many ended for which reason.

Every answer is kept in the cache, so no request is paid for twice. The endpoint's key is taken from
the environment, OPENAI_API_KEY.

Examples:
    python -m experiments.ultralink dialogues --input=data/fr/documents --llm=MODEL \
      --base-url=http://127.0.0.1:8000/v1 --tokenizer=llama2-13b --output=data/fr/dialogues
    python -m experiments.ultralink dialogues --input=data/en/documents --concurrency=8 \
      --llm=local:configs/quickstart.py --tokenizer=smollm2-135m --output=data/en/dialogues
"""

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink import stage
from malora_jax.ultralink.dialogues import DialoguesConfig, dialogues
from malora_jax.ultralink.shards import Manifest
from malora_jax.ultralink.text.tokens import counter

_INPUT = flags.DEFINE_list('input', None, 'Directories of segments.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the dialogues.', required=True)
_TOKENIZER = flags.DEFINE_string('tokenizer', None, shared.TOKENIZER, required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.')
_CHOICE = shared.define_llm()
_FIELDS = shared.define_fields(
    DialoguesConfig,
    stop_probability='That a dialogue ends after its second turn.',
    stop_growth='What this is multiplied by from turn to turn.',
    depth_share='Of questions that go deeper into the last answer.',
    context_tokens='No question is asked when document and turns have so many.',
    least_answer='Characters; a shorter answer ends the dialogue.',
    least_question='Characters.',
    most_question='Characters.',
    most_similarity='Of a question to an earlier one.',
    attempts='Answers that a turn is tried with.',
    question_tokens='The most of a question.',
    answer_tokens='The most of an answer.',
    temperature='Of what is drawn.',
    top_p='Of what is drawn.',
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Makes the dialogues, and prints the counts.

    Raises:
        UserError: as `dialogues` and `opened`.
    """
    print(stage.describe(_make()))


def _make() -> Manifest:
    output = shared.output(_OUTPUT)
    choice = _CHOICE(output)
    config, count = DialoguesConfig(**_FIELDS()), counter(_TOKENIZER.value or '')
    return shared.ask(
        choice,
        lambda model: dialogues(
            config,
            model,
            count,
            shared.paths(_INPUT),
            output,
            seed=_SEED.value,
            concurrency=choice.concurrency,
        ),
    )
