r"""Compares a model's answers with a baseline's: a third model judges, in both orders.

Prints the win rate, with ties as halves, and its 95% interval. Every verdict is kept in the cache,
so no request is paid for twice. The endpoint's key is taken from the environment, OPENAI_API_KEY.

Example:
    python -m experiments.ultralink judge --language=fr --input=ours.jsonl \
      --baseline=davinci.jsonl --llm=JUDGE --output=results/judge_fr
"""

from absl import flags

from experiments import cli
from experiments.ultralink import shared
from malora_jax.ultralink import shards, stage
from malora_jax.ultralink.evaluation.judge import JudgeConfig, judge, win_rate
from malora_jax.ultralink.manifest import Manifest

_LANGUAGE = flags.DEFINE_string('language', None, 'en, zh, ru, fr or es.', required=True)
_INPUT = flags.DEFINE_list('input', None, 'Rows with `id`, `question` and `answer`.', required=True)
_BASELINE = flags.DEFINE_string(
    'baseline', None, 'Rows with `id` and `answer` of the baseline.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the verdicts.', required=True)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.')
_CHOICE = shared.define_llm()
_FIELDS = shared.define_fields(
    JudgeConfig,
    attempts='How often a verdict is asked for.',
    max_tokens='The most of a verdict.',
    temperature='Of what is drawn.',
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Judges, and prints the win rate.

    Raises:
        UserError: as `judge`, `opened` and `win_rate`.
    """
    manifest = _make()
    rows = shards.read([shared.output(_OUTPUT)])
    found = win_rate([row.fields['score'] for row in rows], seed=_SEED.value)
    print(stage.describe(manifest))
    print(
        f'Win rate {found.rate:.1%}, 95% interval {found.low:.1%} to {found.high:.1%}: '
        f'{found.wins} wins, {found.ties} ties, {found.losses} losses'
    )


def _make() -> Manifest:
    output = shared.output(_OUTPUT)
    choice = _CHOICE(output)
    config = JudgeConfig(_LANGUAGE.value or '', **_FIELDS())
    return shared.ask(
        choice,
        lambda model: judge(
            config,
            model,
            shared.paths(_INPUT),
            cli.directory(_BASELINE),
            output,
            seed=_SEED.value,
            concurrency=choice.concurrency,
        ),
    )
