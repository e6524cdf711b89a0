"""Data pipeline: tasks, splits, prompt templates, tokenization, sequence packing and task mixture.

It turns examples (text) into packed batches of tokens, and does not depend on any model. `splits`
describes the examples of a task, `mixture` the training batches, `packing` the evaluation batches.
"""

from malora_jax.data.benchmark_tasks import (
    Benchmark,
    benchmark,
    benchmark_settings,
    is_benchmark,
)
from malora_jax.data.benchmarks import DATASETS, get_dataset
from malora_jax.data.describe import describe_drawing, describe_split
from malora_jax.data.drawing import Drawing, count_drawn
from malora_jax.data.encoding import (
    encode_completion,
    encode_example,
    encode_prompt,
    end_id,
    with_bos,
)
from malora_jax.data.examples import Example
from malora_jax.data.file_tasks import FileTask, file_digests, file_tasks
from malora_jax.data.fitting import Size, measure_examples, shortened
from malora_jax.data.mixture import mixture_shares, train_iterator
from malora_jax.data.packing import packed_batches
from malora_jax.data.reasoning_gym_tasks import ReasoningGymSource
from malora_jax.data.scorers import exact_match
from malora_jax.data.scoring import (
    GeneratedScoring,
    LikelihoodScoring,
    ProgramScoring,
    Scoring,
)
from malora_jax.data.splits import Split, TaskProtocol, without_kept_questions
from malora_jax.data.store import Store, check_sources, open_store
from malora_jax.data.streams import RowStreams
from malora_jax.data.tasks import (
    Source,
    Task,
    get_task,
    register,
    take_distinct,
    task_names,
)
from malora_jax.data.templates import Template, get_template
from malora_jax.data.tokenizer import Tokenizer

__all__ = [
    'DATASETS',
    'Benchmark',
    'Drawing',
    'Example',
    'FileTask',
    'GeneratedScoring',
    'LikelihoodScoring',
    'ProgramScoring',
    'ReasoningGymSource',
    'RowStreams',
    'Scoring',
    'Size',
    'Source',
    'Split',
    'Store',
    'Task',
    'TaskProtocol',
    'Template',
    'Tokenizer',
    'benchmark',
    'benchmark_settings',
    'check_sources',
    'count_drawn',
    'describe_drawing',
    'describe_split',
    'encode_completion',
    'encode_example',
    'encode_prompt',
    'end_id',
    'exact_match',
    'file_digests',
    'file_tasks',
    'get_dataset',
    'get_task',
    'get_template',
    'is_benchmark',
    'measure_examples',
    'mixture_shares',
    'open_store',
    'packed_batches',
    'register',
    'shortened',
    'take_distinct',
    'task_names',
    'train_iterator',
    'with_bos',
    'without_kept_questions',
]
