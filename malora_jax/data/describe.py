"""What a run is about to train on and score, a line for each task."""

from malora_jax.data.fitting import Size
from malora_jax.data.splits import Split


def describe_split(split: Split, size: Size) -> str:
    """What was read for a task and how it was split, in one line.

    Args:
        split: the task.
        size: of its training examples.
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
            parts.append(f'{len(origin["dataset"]["left_out"]):,} broken rows left out')
    if origin.get('dropped_duplicates'):
        parts.append(f'{origin["dropped_duplicates"]:,} exact duplicates dropped')
    if 'dropped_shared' in origin:
        parts.append(f'{origin["dropped_shared"]:,} held out in another task dropped')
    if split.train:
        parts.append(f'{size.examples:,} examples of {size.tokens:,} tokens to train on')
    if size.truncated:
        parts.append(f'{size.truncated:,} of them truncated')
    if split.validation:
        parts.append(f'{len(split.validation):,} questions for validation')
    if split.held_out:
        parts.append(f'{len(split.held_out):,} questions held out')
    return f'{split.task_name}: {", ".join(parts)}.'
