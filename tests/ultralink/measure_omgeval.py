"""Read a copy of OMGEval, answer its questions, and judge its answers, against a stub endpoint.

`python -m tests.ultralink.measure_omgeval FOLDER` needs a copy of github.com/blcuicall/OMGEval. It
reads every file of questions and of answers, answers the questions of each language, and compares
the answers of gpt3.5-turbo with those of text-davinci-003, or of gpt4 where there are none. The
verdicts of the stub depend on the prompt only. The win rates are recomputed from OMGEval's files,
by AlpacaEval's rules and without this project's code. Prints the counts as JSON.
"""

import ast
import asyncio
import hashlib
import json
import math
import pathlib
import random
import statistics
import sys
import tempfile
from typing import Any

from malora_jax.ultralink.evaluation import question_files
from malora_jax.ultralink.evaluation.answers import AnswersConfig
from malora_jax.ultralink.evaluation.judge import JudgeConfig
from malora_jax.ultralink.llm.model_choice import ModelChoice, open_model
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.settings import Settings
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from tests.helpers.openai_stub import serve_stub
from tests.ultralink.helpers import read_rows

# Folder of model_outputs by the language code of the template.
FOLDERS = {'en': 'english', 'zh': 'chinese', 'fr': 'french', 'ru': 'russia', 'es': 'spanish'}
JUDGED = 'gpt3.5-turbo.json'


def reply(text: str) -> str:
    """Return the stub's verdict on a prompt: either ranking, or in 5% of the cases no verdict."""
    draw = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100
    rank = 1 if draw < 55 else 2
    if draw >= 95:
        return f'Model {rank} is better.'
    return str([{'model': 'model_1', 'rank': rank}, {'model': 'model_2', 'rank': 3 - rank}])


def answer(body: dict[str, Any]) -> str:
    *system, user = (message['content'] for message in body['messages'])
    return reply(user) if system else f'Re: {user}'


async def run(
    stage: str, config: Settings, source: pathlib.Path, output: pathlib.Path, address: str
) -> StageManifest:
    choice = ModelChoice('m', output.parent / f'{output.name}.sqlite', 32, address)
    async with open_model(choice) as model:
        given = StageRun(config, [source], output, model=model, concurrency=32)
        return await STAGES[stage].run(given)


def baseline(folder: pathlib.Path) -> pathlib.Path:
    davinci = folder / 'text-davinci-003.json'
    return davinci if davinci.exists() else folder / 'gpt4.json'


def expected_scores(folder: pathlib.Path, template: str) -> list[float]:
    """Return the scores by AlpacaEval's rules, of the pairs with a verdict."""
    judged, reference = (
        json.loads(path.read_text('utf-8')) for path in (folder / JUDGED, baseline(folder))
    )
    scores = []
    for ours, theirs in zip(judged, reference, strict=True):
        assert ours['instruction'].strip() == theirs['instruction'].strip()
        outputs = [theirs['output'], ours['output']]
        if outputs[0] == outputs[1]:
            scores.append(0.5)
            continue
        seed = f'is_switched_outputs{ours["instruction"]}0'
        switched = random.Random(seed).choices([False, True], k=1)[0]
        shown = outputs[::-1] if switched else outputs
        prompt = template.split('<|im_start|>user\n')[1].split('<|im_end|>')[0].strip()
        for name, text in zip(
            ('output_2', 'output_1', 'instruction'),
            (*shown[::-1], ours['instruction']),
            strict=True,
        ):
            head, _, tail = prompt.rpartition('{' + name + '}')
            prompt = head + text + tail
        try:
            ranking = ast.literal_eval(reply(prompt))
        except SyntaxError:
            continue
        first_wins = ranking[0]['rank'] == 1
        scores.append(float(first_wins == switched))
    return scores


def main(folder: pathlib.Path) -> None:
    questions = {path.stem: path for path in sorted((folder / 'data').glob('*.txt'))}
    outputs = sorted((folder / 'model_outputs').glob('*/*.json'))
    values: dict[str, Any] = {
        'questions': {name: len([*question_files.read([p])]) for name, p in questions.items()},
        'answer_files': len(outputs),
        'answers': sorted({len([*question_files.read([path])]) for path in outputs}),
        'judged': {},
    }
    with tempfile.TemporaryDirectory() as made, serve_stub(answer=answer) as stub:
        root = pathlib.Path(made)
        for name, path in questions.items():
            sent = sum(stub.answer_counts.values())
            asyncio.run(run('answers', AnswersConfig(), path, root / name, stub.address))
            lines = path.read_text('utf-8').rstrip('\n').split('\n')
            assert [row['question'] for row in read_rows(root / name)] == [*map(str.strip, lines)]
            assert all(r['answer'] == f'Re: {r["question"]}' for r in read_rows(root / name))
            # A repeated question is paid for once.
            sent = sum(stub.answer_counts.values()) - sent
            assert sent == len({*map(str.strip, lines)}), name
        values['answered'] = sum(stub.answer_counts.values())
        for code, language in FOLDERS.items():
            source = folder / 'model_outputs' / language
            template = folder / 'evaluator_prompts' / 'gpt4_template' / f'{code}.txt'
            config = JudgeConfig(code, baseline(source), protocol='omgeval', template=template)
            output = root / f'judge_{code}'
            asyncio.run(run('judge', config, source / JUDGED, output, stub.address))
            scores = [row['score'] for row in read_rows(output)]
            expected = expected_scores(source, template.read_text('utf-8'))
            assert scores == expected, code
            error = statistics.stdev(expected) / math.sqrt(len(expected))
            values['judged'][code] = {
                'baseline': baseline(source).stem,
                'scores': len(scores),
                'ties': scores.count(0.5),
                'win_rate': round(statistics.fmean(expected), 4),
                'standard_error': round(error, 4),
            }
    print(json.dumps(values, indent=2))


if __name__ == '__main__':
    main(pathlib.Path(sys.argv[1]))
