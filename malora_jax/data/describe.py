"""Descriptions of a run's data for the log: one line per task, and one line for the whole run."""

from collections.abc import Sequence

from malora_jax.data.packing_simulation import DrawCounts
from malora_jax.data.splits import TaskSplit
from malora_jax.data.token_counts import TokenCounts


def describe_split(split: TaskSplit, size: TokenCounts) -> str:
    """Return one line that describes a task's data source and the sizes of its split.

    For example::

        size = measure_examples('mine', split.train, tokenizer, template, 256)
        print(describe_split(split, size))
        # mine: 900 rows of mine.jsonl, 800 examples of 31,200 tokens to train on, …

    Args:
        split: Examples of the task.
        size: Token counts of its training examples.
    """
    origin, parts = split.origin, []
    if 'file' in origin:
        parts.append(f'{origin["rows"]:,} rows of {origin["file"]}')
    if 'test_file' in origin:
        parts.append(f'{origin["test_rows"]:,} rows of {origin["test_file"]}')
    if 'dataset' in origin:
        revision = origin['dataset']['revision']
        parts.append(origin['dataset']['source'] + (f' at {revision[:8]}' if revision else ''))
        if origin['dataset']['left_out']:
            parts.append(f'{len(origin["dataset"]["left_out"]):,} broken rows skipped')
    if origin.get('dropped_duplicates'):
        parts.append(f'{origin["dropped_duplicates"]:,} exact duplicates dropped')
    if 'dropped_shared' in origin:
        parts.append(f'{origin["dropped_shared"]:,} dropped because another task holds them out')
    if split.train:
        parts.append(f'{size.examples:,} examples of {size.tokens:,} tokens to train on')
    if size.truncated:
        parts.append(f'{size.truncated:,} of them truncated')
    if split.validation:
        parts.append(f'{len(split.validation):,} questions for validation')
    if split.held_out:
        parts.append(f'{len(split.held_out):,} questions held out')
    return f'{split.task_name}: {", ".join(parts)}.'


def describe_truncation(split: TaskSplit, size: TokenCounts, sequence_length: int) -> str:
    """Return a warning that names what truncation removes from a task; '' = nothing.

    Args:
        split: Examples of the task.
        size: Token counts of its training examples.
        sequence_length: T, the maximum number of positions of an example.
    """
    parts = []
    if size.cut_first_turns:
        parts.append(
            f'{size.cut_first_turns:,} of {size.examples:,} examples are cut within their first '
            'question or answer'
        )
    if size.dropped_answers:
        parts.append(f'{size.dropped_answers:,} answers of later turns are dropped')
    if not parts:
        return ''
    return (
        f'Warning: {split.task_name}: {" and ".join(parts)}, because data.sequence_length is '
        f'{sequence_length:,}; the longest example needs {size.longest:,}. Increase it, or make '
        'shorter examples: for dialogues about documents, lower --segment-tokens of the stage '
        '`documents`.'
    )


def describe_draws(
    draws: DrawCounts, splits: Sequence[TaskSplit], steps: int, rows: int, sequence_length: int
) -> str:
    """Return one line with a run's steps, packing efficiency, and drawn examples per task.

    For example, with `draws` from `count_drawn_examples`::

        print(describe_draws(draws, splits, steps=500, rows=32, sequence_length=256))

    Args:
        draws: Counts of drawn examples. If they cover only the first steps of the run, the line
            has estimates for all `steps`, in proportion.
        splits: Splits of the tasks, in the order of the counts.
        steps: Number of optimizer steps of the run.
        rows: Number of rows (sequences of packed examples) per step.
        sequence_length: T, the number of tokens per packed row.
    """
    scale, approximately = steps / draws.steps, '' if draws.steps == steps else 'about '
    by_task = {
        split.task_name: (count * scale, len(split.train))
        for split, count in zip(splits, draws.examples, strict=True)
        if split.train
    }
    drawn, examples = (sum(each) for each in zip(*by_task.values(), strict=True))
    tasks = ', '.join(
        f'{name} {count:,.0f} ({count / size:.2f})' for name, (count, size) in by_task.items()
    )
    return (
        f'{steps:,} steps of {rows:,} rows of {sequence_length:,} tokens, {approximately}'
        f'{100 * draws.packing_efficiency:.1f}% full, draw {approximately}{drawn:,.0f} examples '
        f'({drawn / examples:.2f} epochs): {tasks}.'
    )
