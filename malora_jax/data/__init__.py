"""Text in, packed batches out: tasks, splits, templates, mixture. Knows no model."""

from malora_jax.data.encoding import encode_completion, encode_example, encode_prompt, end_id
from malora_jax.data.file_splits import describe_split, split_file, without_kept_questions
from malora_jax.data.file_tasks import FileTask, file_digests, file_tasks
from malora_jax.data.fitting import encode_examples
from malora_jax.data.mixture import train_iterator
from malora_jax.data.packing import packed_batches
from malora_jax.data.reasoning_gym_tasks import ReasoningGymSource
from malora_jax.data.splits import Split, best_constant, split_task
from malora_jax.data.tasks import (
    Example,
    Scored,
    Source,
    Task,
    exact_match,
    get_task,
    register,
    take_distinct,
    task_names,
)
from malora_jax.data.templates import Template, get_template
from malora_jax.data.tokenizer import Tokenizer

__all__ = [
    'Example',
    'FileTask',
    'ReasoningGymSource',
    'Scored',
    'Source',
    'Split',
    'Task',
    'Template',
    'Tokenizer',
    'best_constant',
    'describe_split',
    'encode_completion',
    'encode_example',
    'encode_examples',
    'encode_prompt',
    'end_id',
    'exact_match',
    'file_digests',
    'file_tasks',
    'get_task',
    'get_template',
    'packed_batches',
    'register',
    'split_file',
    'split_task',
    'take_distinct',
    'task_names',
    'train_iterator',
    'without_kept_questions',
]
