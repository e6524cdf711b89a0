"""Data pipeline: tasks, splits, prompt templates, tokenization, sequence packing and task mixture.

The pipeline turns examples (text) into packed batches of tokens, and does not depend on any model.
Module `splits` describes the examples of a task, `mixture` makes the training batches, and
`packing` makes the evaluation batches.
"""

from etils import epy

# Not on first use: a function has the name of its module, which would hide it, and the other module
# registers tasks.
from malora_jax.data.file_tasks import FileTask, file_digests, file_tasks
from malora_jax.data.reasoning_gym_tasks import ReasoningGymSource

# Loaded on first use, because some of them load Grain, and with it JAX and Orbax. This takes longer
# than most commands of UltraLink, which only read files.
with epy.lazy_api_imports(globals()):
    from malora_jax.data.dataset_tasks import (
        DatasetTask,
        dataset_settings,
        dataset_task,
        is_public_dataset,
    )
    from malora_jax.data.datasets import DATASETS, get_dataset
    from malora_jax.data.describe import describe_draws, describe_split, describe_truncation
    from malora_jax.data.encoding import (
        encode_completion,
        encode_example,
        encode_prompt,
        end_token_id,
        with_bos,
    )
    from malora_jax.data.examples import Example
    from malora_jax.data.mixture import mixture_shares, train_iterator
    from malora_jax.data.overlaps import Overlap, count_overlaps
    from malora_jax.data.packing import packed_batches
    from malora_jax.data.packing_simulation import DrawCounts, count_drawn_examples
    from malora_jax.data.scorers import exact_match
    from malora_jax.data.scoring import (
        GenerationScoring,
        LikelihoodScoring,
        ProgramScoring,
        Scoring,
    )
    from malora_jax.data.splits import TaskProtocol, TaskSplit, drop_leaked_questions
    from malora_jax.data.store import Store, check_sources, open_store
    from malora_jax.data.streams import RowStreams
    from malora_jax.data.tasks import (
        Source,
        Task,
        get_task,
        register_task,
        take_distinct,
        task_names,
    )
    from malora_jax.data.templates import Template, get_template
    from malora_jax.data.token_counts import TokenCounts, measure_examples, truncate_conversation
    from malora_jax.data.tokenizer import TokenizerProtocol

__all__ = [
    'DATASETS',
    'DatasetTask',
    'DrawCounts',
    'Example',
    'FileTask',
    'GenerationScoring',
    'LikelihoodScoring',
    'Overlap',
    'ProgramScoring',
    'ReasoningGymSource',
    'RowStreams',
    'Scoring',
    'Source',
    'Store',
    'Task',
    'TaskProtocol',
    'TaskSplit',
    'Template',
    'TokenCounts',
    'TokenizerProtocol',
    'check_sources',
    'count_drawn_examples',
    'count_overlaps',
    'dataset_settings',
    'dataset_task',
    'describe_draws',
    'describe_split',
    'describe_truncation',
    'drop_leaked_questions',
    'encode_completion',
    'encode_example',
    'encode_prompt',
    'end_token_id',
    'exact_match',
    'file_digests',
    'file_tasks',
    'get_dataset',
    'get_task',
    'get_template',
    'is_public_dataset',
    'measure_examples',
    'mixture_shares',
    'open_store',
    'packed_batches',
    'register_task',
    'take_distinct',
    'task_names',
    'train_iterator',
    'truncate_conversation',
    'with_bos',
]
