"""The stages that call a model, with rows, and answers of a stub for each of them.

`python -m tests.ultralink.billed_stages NAME DIRECTORY ADDRESS ROWS SAMPLE` runs a stage on a
sample of its rows.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from malora_jax.ultralink import criteria, paper_statistics, translations
from malora_jax.ultralink.criteria import CriteriaConfig
from malora_jax.ultralink.dialogues import DialoguesConfig
from malora_jax.ultralink.evaluation.answers import AnswersConfig
from malora_jax.ultralink.evaluation.judge import JudgeConfig
from malora_jax.ultralink.evaluation.mgsm import MgsmConfig
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.llm.request_format import EndpointSettings
from malora_jax.ultralink.selection import ALL_ITEMS, Selection
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.translate import TranslateConfig
from tests.helpers.openai_stub import document, request_key
from tests.ultralink import translated_texts
from tests.ultralink.helpers import WordCounter, write_rows

MODEL = 'm'
_TRANSLATED_TEXTS = {
    'math': (translated_texts.MATHS, translated_texts.LATEX),
    'code': (translated_texts.CODE,),
}
_WORDS = (
    *('river', 'house', 'market', 'seven', 'music', 'paper', 'bridge', 'winter', 'garden'),
    *('letter', 'a', 'the', 'of', 'in', 'and', 'to', 'with', 'for', 'was', 'has'),
)


def english(rng: random.Random, words: int) -> str:
    """Return an English text of random words."""
    return ' '.join(rng.choice(_WORDS) for _ in range(words)).capitalize() + '.'


def translation_row(number: int, subset: str = 'math') -> dict[str, Any]:
    """Return a conversation of two messages that can be translated."""
    texts = random.Random(number).choices(_TRANSLATED_TEXTS[subset], k=2)
    data = [f'{number}.{place} {text.english}' for place, text in enumerate(texts, 1)]
    return {'id': f'{subset}-{number}', 'language': 'en', 'subset': subset, 'data': data}


def translated(body: dict[str, Any]) -> str:
    """Return the recorded translation of the last message, or a faulty one now and then."""
    number, _, text = body['messages'][-1]['content'].partition(' ')
    [known] = [each for each in translated_texts.ALL.values() if each.english == text]
    if random.Random(request_key(body)).random() < 0.1:
        return 'Je ne sais pas.'
    system = body['messages'][0]['content']
    [language] = [
        code
        for code in paper_statistics.LANGUAGES[1:]
        if system in {translations.load(code, subset).system for subset in _TRANSLATED_TEXTS}
    ]
    # A French number has a comma.
    return f'{number.replace(".", ",")} {known.translations[language]}'


def scores(body: dict[str, Any]) -> str:
    """Return scores of which a fifth are not usable."""
    rng = random.Random(request_key(body))
    if rng.random() < 0.2:
        return 'This conversation meets no criterion at all, as far as I can see.'
    return json.dumps({name: int(rng.random() < 0.05) for name in criteria.CRITERIA})


def verdict(body: dict[str, Any]) -> str:
    rng = random.Random(request_key(body))
    return f'{english(rng, rng.randint(10, 60))} [[{rng.choice("ABC")}]]'


def solution(body: dict[str, Any]) -> str:
    rng = random.Random(request_key(body))
    return f'{english(rng, rng.randint(50, 250))} The answer is {rng.randrange(100)}.'


@dataclasses.dataclass(frozen=True)
class BilledStage:
    """A stage with settings, rows, and the answers of a stub.

    Attributes:
        config: Function from the directory of the inputs to the settings.
        row: Function from a number to an input row.
        answer: Function from a request's body to the answer.
        token_counter: Token counter, for a stage that needs one.
    """

    config: Callable[[pathlib.Path], Any]
    row: Callable[[int], dict[str, Any]]
    answer: Callable[[dict[str, Any]], str] = lambda body: 'Yes.'
    token_counter: Any = None


def _chat(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    data = [english(rng, rng.randint(10, 90)) for _ in range(4)]
    return {'id': f'chat-{number}', 'language': 'en', 'subset': 'chat_agnostic', 'data': data}


def _answers(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    texts = {'question': english(rng, 20), 'answer': english(rng, rng.randint(20, 200))}
    return {'id': f'q-{number}', **texts}


def _problem(number: int) -> dict[str, Any]:
    question = english(random.Random(number), 40)
    return {'question': question, 'answer_number': str(number % 100)}


def _question(number: int) -> dict[str, Any]:
    return {'id': f'q-{number}', 'question': english(random.Random(number), 20)}


def _judge_config(root: pathlib.Path) -> JudgeConfig:
    rows = ({**_answers(number), 'answer': f'Answer {number}.'} for number in range(80))
    return JudgeConfig('en', write_rows(root / 'baseline.jsonl', rows))


BILLED_STAGES = {
    'dialogues': BilledStage(
        lambda root: DialoguesConfig(),
        lambda number: {**document('fr', number, 6), 'id': f'fr-{number}', 'language': 'fr'},
        token_counter=WordCounter(),
    ),
    'criteria': BilledStage(lambda root: CriteriaConfig(), _chat, scores),
    'translate': BilledStage(lambda root: TranslateConfig('fr'), translation_row, translated),
    'mgsm': BilledStage(lambda root: MgsmConfig('en'), _problem, solution),
    'answers': BilledStage(lambda root: AnswersConfig(), _question),
    'judge': BilledStage(_judge_config, _answers, verdict),
}


@contextlib.asynccontextmanager
async def open_run(
    name: str,
    root: pathlib.Path,
    address: str,
    items: int,
    selection: Selection = ALL_ITEMS,
    concurrency: int = 8,
    token_limit: int = 0,
    **settings: Any,
) -> Iterator[StageRun]:
    """Yield a run of a stage with new rows, an endpoint with settings, and a cache."""
    billed = BILLED_STAGES[name]
    source = write_rows(root / f'{name}-{items}.jsonl', map(billed.row, range(items)))
    choice = ModelChoice(
        MODEL,
        root / 'answers.sqlite',
        concurrency,
        address,
        token_limit=token_limit,
        endpoint=EndpointSettings(**settings),
    )
    with mock.patch.dict(os.environ, OPENAI_API_KEY='any'):
        async with open_model(choice) as model:
            yield StageRun(
                billed.config(root),
                [source],
                root / 'out',
                model=model,
                token_counter=billed.token_counter,
                concurrency=concurrency,
                shard_items=20,
                selection=selection,
            )


async def _main(name: str, root: str, address: str, items: str, sample: str) -> None:
    selection = Selection(int(sample))
    async with open_run(name, pathlib.Path(root), address, int(items), selection) as run:
        await STAGES[name].run(run)


if __name__ == '__main__':
    asyncio.run(_main(*sys.argv[1:]))
