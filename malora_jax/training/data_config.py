"""The `data` section of a config, validated."""

import dataclasses
from collections.abc import Collection

from malora_jax import data, errors
from malora_jax.training.checks import at_least, at_most, require

# Questions of one task: making more of them would take days.
_MOST_QUESTIONS = 10**7
# Threads that read.
_MOST_WORKERS = 1000


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        tasks: names of public datasets and in the task registry; may be () if there are files.
        weights: share of each task among the examples; () = by `size_exponent`.
        size_exponent: the share of a task is proportional to its size to this power, 0 to 1: 0 =
            all the same, 1 = proportional, 1 / τ for what is called temperature τ.
        template: name of the prompt template: 'chatml', 'plain', 'chat', the model's own, or
            'bare', nothing around the whole prompts of public datasets.
        max_per_task: at most how many distinct questions of each task, or rows of a public
            dataset, to train on; 0 = all. Of a task whose examples are made rather than stored,
            just so many.
        held_out: distinct questions of each task that are kept for scoring; of a public dataset
            with a test split, at most how many of it, and 0 = all.
        validation: distinct questions of each task, in neither of those, whose loss chooses the
            best checkpoint; see `training.evaluate_every`.
        sequence_length: T, tokens of a packed row.
        truncate: whether examples that are longer are cut, as `data.encode_example` says, or
            refused. Held-out chats that do not fit into the context are asked an earlier question.
        workers: threads that read and tokenise ahead of the training; 0 = none.
        batch_size: B, rows that are computed together, on all devices; a step has
            `training.accumulate` times as many.
        streams: in how many streams rows are read. Of several hosts each reads those that its rows
            come from; with fewer streams than hosts some read more than their share.
        files: tasks of one's own, 'NAME=PATH' or 'PATH' each; see `data.FileTask` for these six.
        question_field: pattern of the question in these files.
        answer_field: pattern of the answer.
        scorer: name of the scorer.
        turns_field: name of the field with the turns of a chat, instead of question and answer.
        file_settings: 'NAME.FIELD=VALUE' each, where one task differs in such a field, or has a
            `test_file`.
        form: of the prompts of public datasets; see `data.benchmarks.forms`.
        task_settings: 'NAME.FIELD=VALUE' each, where one public dataset differs in `form` or
            `shots`; see `data.Benchmark`.
        directory: where public datasets are prepared, a path or gs://BUCKET/PATH; '' =
            TFDS_DATA_DIR, or ~/tensorflow_datasets.
        sources: 'DATASET/SPLIT=PATH' each: splits to prepare from a local file.
        skip_broken: whether a broken row of a public dataset is left out and listed, or an error.
    """

    tasks: tuple[str, ...]
    template: str
    max_per_task: int
    held_out: int
    sequence_length: int
    batch_size: int
    weights: tuple[float, ...] = ()
    size_exponent: float = 0.0
    validation: int = 0
    truncate: bool = False
    workers: int = 0
    files: tuple[str, ...] = ()
    question_field: str = 'question'
    answer_field: str = 'answer'
    scorer: str = 'exact_match'
    turns_field: str = ''
    file_settings: tuple[str, ...] = ()
    form: str = 'completion'
    task_settings: tuple[str, ...] = ()
    directory: str = ''
    sources: tuple[str, ...] = ()
    skip_broken: bool = False
    streams: int = 1

    def __post_init__(self):
        errors.check_types('data', self)
        names = [*self.tasks, *(task.name for task in self.file_tasks)]
        if not names:
            raise errors.UserError(
                "data.tasks and data.files are both empty; name a task, or a file: ('mine.jsonl',)."
            )
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise errors.UserError(f'data.tasks and data.files name {twins[0]!r} twice.')
        require(
            len(self.weights) in (0, len(names)) and all(w > 0 for w in self.weights),
            'data.weights',
            self.weights,
            f'empty, or one positive number a task ({", ".join(names)})',
        )
        require(
            0 <= self.size_exponent <= (0 if self.weights else 1),
            'data.size_exponent',
            self.size_exponent,
            '0 where data.weights are given' if self.weights else 'from 0 to 1',
        )
        for task in self.tasks:
            check_task('data.tasks', task)
        made = [task for task in self.tasks if not data.is_benchmark(task)]
        data.get_template(self.template)
        self._check_template(asked=[*made, *self.files], whole=set(self.tasks) - set(made))
        at_least(1 if made else 0, 'data', self, 'max_per_task')
        at_least(1 if made or self.files else 0, 'data', self, 'held_out')
        at_least(1, 'data', self, 'sequence_length', 'batch_size', 'streams')
        at_most(_MOST_QUESTIONS, 'data', self, 'max_per_task', 'held_out', 'validation')
        at_most(_MOST_WORKERS, 'data', self, 'workers')
        require(
            self.batch_size % self.streams == 0,
            'data.streams',
            self.streams,
            f'a divisor of data.batch_size, {self.batch_size}',
        )
        at_least(0, 'data', self, 'validation', 'workers')
        data.check_sources(self.sources)
        data.benchmark_settings(self.form, self.task_settings)

    def _check_template(self, asked: Collection[str], whole: Collection[str]) -> None:
        """Checks that the template suits questions, and the whole prompts of public datasets."""
        require(
            not asked or self.template != 'bare',
            'data.template',
            self.template,
            "'plain', 'chatml' or 'chat', which tell a question from its answer, for "
            f'{", ".join(asked)}',
        )
        require(
            not whole or self.template != 'plain',
            'data.template',
            self.template,
            "'bare', 'chatml' or 'chat' for public datasets, whose prompts are whole",
        )

    @property
    def store(self) -> data.Store:
        """Directory of the prepared public datasets."""
        return data.open_store(self.directory, self.sources, self.skip_broken)

    @property
    def file_tasks(self) -> list[data.FileTask]:
        """The tasks that come from files."""
        return data.file_tasks(
            self.files,
            self.file_settings,
            question_field=self.question_field,
            answer_field=self.answer_field,
            scorer=self.scorer,
            turns_field=self.turns_field,
        )


def check_task(field: str, name: str, files: Collection[str] = ()) -> None:
    """Checks the name of a task in a config.

    Args:
        field: where it stands.
        name: of a public dataset or in the task registry.
        files: names of the config's own files, which are known too.

    Raises:
        UserError: it is none of these.
    """
    known = {*data.DATASETS, *data.task_names(), *files}
    if name not in known:
        raise errors.unknown_name(f'task in {field}', name, known)
