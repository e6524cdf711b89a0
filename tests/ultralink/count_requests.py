"""Count the requests for the paper's translation budget, with and without sampling first.

`python -m tests.ultralink.count_requests [ROWS]` translates English conversations about mathematics
and code into four languages and prunes them to the paper's shares: 32 of 395 about mathematics, and
16 of 186 about code. A stub endpoint counts the requests. It gives faulty translations: 10% of its
replies, and all replies to 3% of the messages. First everything is translated, as in earlier
versions. Then a sample is translated and topped up until the budget is reached.
"""

import asyncio
import math
import os
import pathlib
import random
import sys
import tempfile
from typing import Any

from malora_jax.ultralink import paper_statistics
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.prune import PruneConfig
from malora_jax.ultralink.selection import ALL_ITEMS, Selection
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.translate import TranslateConfig
from tests.helpers.openai_stub import StubEndpoint, serve_stub
from tests.ultralink.billed_stages import translated, translation_row
from tests.ultralink.helpers import write_rows

# Number of English conversations in the paper, and of translations that are kept for a language.
PAPER = {'math': (395_000, 32_000), 'code': (186_000, 16_000)}
# Share of conversations that a user expects to pass the checks.
EXPECTED_SHARE = 0.97


def answer(body: dict[str, Any]) -> str:
    """Translate the last message, unless it is one that this model never translates."""
    text = body['messages'][-1]['content']
    return 'Non.' if random.Random(text).random() < 0.03 else translated(body)


async def translate(
    source: pathlib.Path, output: pathlib.Path, address: str, selection: Selection
) -> StageManifest:
    choice = ModelChoice('m', output.parent / 'answers.sqlite', 32, address)
    config = TranslateConfig(output.name.partition('-')[0])
    async with open_model(choice) as model:
        run = StageRun(config, [source], output, model=model, concurrency=32, selection=selection)
        return await STAGES['translate'].run(run)


async def translate_until(
    source: pathlib.Path, output: pathlib.Path, address: str, budget: int
) -> int:
    """Enlarge the sample until enough rows are kept, and return the number of commands."""
    size = math.ceil(budget / EXPECTED_SHARE)
    for number in range(1, 100):
        manifest = await translate(source, output, address, Selection(sample=size))
        if manifest.total.kept >= budget:
            return number
        size += math.ceil((budget - manifest.total.kept) / EXPECTED_SHARE)
    raise AssertionError('The sample never reaches the budget.')


def main(rows: int) -> None:
    total = sum(english for english, _ in PAPER.values())
    counts = {subset: rows * english // total for subset, (english, _) in PAPER.items()}
    budgets = {
        subset: round(counts[subset] * kept / english) for subset, (english, kept) in PAPER.items()
    }
    print(f'English rows: {counts}; budget for each language: {budgets}', flush=True)
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        for subset, count in counts.items():
            write_rows(root / f'{subset}.jsonl', (translation_row(i, subset) for i in range(count)))
        asked = {}
        for name in ('all', 'sampled'):
            (root / name).mkdir()
            with serve_stub(answer=answer) as stub:
                commands = translate_languages(root, name, stub, budgets)
                asked[name] = sum(stub.answer_counts.values())
            kept = prune(root / name, budgets)
            print(f'{name}: {asked[name]:,} requests in {commands} commands; {kept:,} rows kept')
    print(f'{asked["all"] / asked["sampled"]:.1f} times fewer requests')


def translate_languages(
    root: pathlib.Path, name: str, stub: StubEndpoint, budgets: dict[str, int]
) -> int:
    """Translate into all languages, and return the number of commands."""
    commands = 0
    for language in paper_statistics.LANGUAGES[1:]:
        for subset, budget in budgets.items():
            source, output = root / f'{subset}.jsonl', root / name / f'{language}-{subset}'
            if name == 'all':
                asyncio.run(translate(source, output, stub.address, ALL_ITEMS))
                commands += 1
            else:
                commands += asyncio.run(translate_until(source, output, stub.address, budget))
    return commands


def prune(root: pathlib.Path, budgets: dict[str, int]) -> int:
    """Prune the translations, and return the number of kept rows.

    The texts differ only in their numbers, so only equal ones count as near-duplicates.
    """
    inputs = sorted(path.parent for path in root.glob('*/manifest.json'))
    config = PruneConfig(**budgets, min_similarity=1.0)
    run = StageRun(config, inputs, root / 'pruned')
    return asyncio.run(STAGES['prune'].run(run)).total.kept


if __name__ == '__main__':
    os.environ['OPENAI_API_KEY'] = 'any'
    main(int(sys.argv[1]) if sys.argv[1:] else 1000)
