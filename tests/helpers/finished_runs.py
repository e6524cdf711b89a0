"""Run directories as finished runs leave them, with made-up answers and no checkpoints."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

QUESTIONS = 40


def write_finished_run(
    directory: pathlib.Path,
    config,
    correct: Mapping[str, int] | int,
    *,
    seed: int = 0,
    loss: float = 1.0,
    question_format: str = 'What is {}?',
    scoring: str = 'likelihood',
    correct_before: int = 10,
    nats: Mapping[str, Sequence[float]] | None = None,
    validation: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """Write a finished run that answers the first `correct` of 40 questions of each task correctly.

    The right answers of each task have 1, 3, 1, 3, ... tokens. Each has 8 nats of loss before
    training. Afterwards it has `nats`, or the nats that give the tasks the losses `loss`, `loss` +
    1, ... per token.

    Args:
        directory: Directory of the run.
        config: Config of the run; its seed is set.
        correct: Number of questions answered correctly, by task or the same for each.
        seed: Random seed of the run.
        loss: Loss of the first task after training, in nats per token.
        question_format: Text of the questions, with `{}` for their number.
        scoring: Scoring rule that results.json records.
        correct_before: Number of questions of each task that the base model answers correctly.
        nats: Summed loss of each right answer after training, by task.
        validation: Validation losses by step.
    """
    directory.mkdir(parents=True)
    config.seed = seed
    tasks = config.evaluation.tasks
    correct = dict.fromkeys(tasks, correct) if isinstance(correct, int) else correct
    nats = nats or {task: [2.0 * (loss + number)] * QUESTIONS for number, task in enumerate(tasks)}

    def write_answers(when: str, correct: Mapping[str, int], nats) -> None:
        rows = [
            {
                'task': task,
                'question': question_format.format(q),
                'expected': 'x',
                'answer': 'x',
                'score': float(q < correct[task]),
                'nats': nats[task][q],
                'tokens': 1 + q % 2 * 2,
            }
            for task in tasks
            for q in range(QUESTIONS)
        ]
        lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
        (directory / f'answers_{when}.jsonl').write_text(lines)

    write_answers(
        'before', dict.fromkeys(tasks, correct_before), dict.fromkeys(tasks, [8.0] * QUESTIONS)
    )
    write_answers('after', correct, nats)
    (directory / 'config.json').write_text(json.dumps(config.to_dict()))
    results = {
        'model': config.model.name,
        'tasks': {
            task: {
                'metric': 'accuracy',
                'before': correct_before / QUESTIONS,
                'after': correct[task] / QUESTIONS,
                'examples': QUESTIONS,
                'loss_before': 4.0,
                'loss_after': sum(nats[task]) / (2 * QUESTIONS),
                'scoring': {'rule': scoring, 'form': 'completion', 'shots': 0},
            }
            for number, task in enumerate(tasks)
        },
        'average': {'before': correct_before / QUESTIONS, 'after': 0.5},
        'parameters': {'trainable': 1234567, 'percent_of_base': 2.124},
        'steps': 3,
        'tokens': 1000,
        'train_time_s': 1.0,
    }
    (directory / 'results.json').write_text(json.dumps(results))
    trained = [f'loss/{task}' for task in config.data.tasks]
    records = [{'step': step, **dict.fromkeys(trained, loss + 1 / step)} for step in (1, 2, 3)]
    records[2]['validation_loss/' + config.data.tasks[0]] = loss
    for record in records:
        record['loss'] = loss + 1 / record['step']
        if record['step'] in validation:
            record['validation_loss'] = validation[record['step']]
    lines = ''.join(f'{json.dumps(record)}\n' for record in records)
    (directory / 'metrics.jsonl').write_text(lines)
