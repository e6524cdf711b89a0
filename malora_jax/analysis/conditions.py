"""Conditions of the numbers in a plot: base model, seeds and number of held-out questions."""

from collections.abc import Collection, Sequence

from malora_jax.runs import LoadedRun


def model_and_seeds(runs: Sequence[LoadedRun]) -> str:
    """Return the base model and the seeds of runs, such as 'smollm2-135m, seeds 0, 1'.

    Args:
        runs: Runs on one base model, at least one.
    """
    return f'{runs[0].base_identity[0]}, {name_seeds({run.seed for run in runs})}'


def name_seeds(seeds: Collection[int]) -> str:
    """Return seeds in ascending order, such as 'seed 0' or 'seeds 0, 1'."""
    return f'seed{"s" * (len(seeds) > 1)} {", ".join(map(str, sorted(seeds)))}'


def held_out_questions(runs: Sequence[LoadedRun]) -> str:
    """Return the number of held-out questions, such as '900 held-out questions in 6 tasks'.

    Each task is counted once, although all runs answer its questions.

    Args:
        runs: Finished runs.
    """
    counts = {
        task: result['examples'] for run in runs for task, result in run.results['tasks'].items()
    }
    return f'{sum(counts.values()):,} held-out questions in {count(len(counts), "task")}'


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as '1 task' or '2 tasks'."""
    return f'{number:,} {noun}{"s" * (number != 1)}'
