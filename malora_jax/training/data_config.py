"""The section `data` of a config: tasks, prompt templates, and training batches."""

import dataclasses
from collections.abc import Collection, Iterable

from malora_jax import data, errors
from malora_jax.training.checks import check_field, check_max, check_min

# Maximum number of questions of one task. Generating more of them would take days.
_MAX_QUESTIONS = 10**7
# Maximum number of reader threads.
_MAX_WORKERS = 1000


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of the training data and of the held-out questions.

    Attributes:
        tasks: Names of public datasets, and of tasks in the task registry; may be () if there are
            `files`.
        weights: Relative share of each task among the training examples; () = by `size_exponent`.
        size_exponent: Exponent α, 0 to 1. A task with n training examples gets a share proportional
            to n^α. 0 = equal shares, 1 = shares proportional to size, 1 / τ = sampling with
            temperature τ.
        template: Name of the prompt template: 'chatml'; 'plain'; 'chat', the model's own chat
            template; or 'bare', which adds nothing to the complete prompts of public datasets.
        max_per_task: Maximum number of distinct training questions of each task, or of rows of a
            public dataset; 0 = all. A task of the task registry gets exactly this number, so 0
            is not valid if there is such a task.
        held_out: Number of distinct questions of each task that are held out for scoring. A public
            dataset or a file with a `test_file` has separate test questions; for these, this is the
            maximum number. 0 = all test questions, valid only if all `tasks` are public datasets
            and there are no `files`.
        validation: Number of distinct questions of each task for the validation loss, which selects
            the best checkpoint; see `training.evaluate_every`. They are neither trained on nor
            scored.
        sequence_length: Number of tokens of a packed row, T.
        truncate: Whether examples that are too long are shortened; otherwise they are an error. A
            training example longer than a row is truncated as `data.encode_example` describes. A
            held-out chat longer than the model's context loses its last turns, so an earlier
            question of the chat is scored.
        workers: Number of threads that read and tokenize ahead of training; 0 = no threads.
        batch_size: Number of rows that are computed together on all devices, B. With gradient
            accumulation, a step has `training.accumulate` times as many rows.
        streams: Number of independent streams that rows are read from; a divisor of `batch_size`.
            Each host reads every stream that contains some of its rows. With fewer streams than
            hosts, several hosts read the same stream, which costs each of them extra time.
        files: Tasks from your own files, each 'NAME=PATH' or 'PATH'. See `data.FileTask` for this
            and the next five fields.
        question_field: Pattern of the question in these files.
        answer_field: Pattern of the answer in these files.
        scorer: Name of the scorer for these files.
        turns_field: Name of the field with the turns of a chat, which replaces question and answer.
        file_settings: Settings of single files, each 'NAME.FIELD=VALUE' with one of the four fields
            above or `test_file`.
        form: Name of the prompt form of public datasets, a key of `data.datasets.FORMS`.
        task_settings: Settings of single public datasets, each 'NAME.FIELD=VALUE' with field `form`
            or `shots`; see `data.DatasetTask`.
        directory: Directory of the prepared public datasets, a path or gs://BUCKET/PATH; '' =
            TFDS_DATA_DIR, or ~/tensorflow_datasets.
        sources: Splits of public datasets to prepare from local files, each 'DATASET/SPLIT=PATH'.
        skip_broken: Whether invalid rows of a public dataset are skipped and listed; otherwise they
            are an error.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another value.
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
        names = self.trained_tasks
        if not names:
            raise errors.UserError(
                "data.tasks and data.files are both empty; name a task, or a file: ('mine.jsonl',)."
            )
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise errors.UserError(f'data.tasks and data.files name {duplicates[0]!r} twice.')
        check_field(
            len(self.weights) in (0, len(names)) and all(w > 0 for w in self.weights),
            'data.weights',
            self.weights,
            f'empty, or one positive number per task ({", ".join(names)})',
        )
        check_field(
            0 <= self.size_exponent <= (0 if self.weights else 1),
            'data.size_exponent',
            self.size_exponent,
            '0 if data.weights are given' if self.weights else 'from 0 to 1',
        )
        for task in self.tasks:
            check_task('data.tasks', task)
        registry_tasks = [task for task in self.tasks if not data.is_public_dataset(task)]
        data.get_template(self.template)
        self._check_template(
            question_tasks=[*registry_tasks, *self.files],
            prompt_datasets=set(self.tasks) - set(registry_tasks),
        )
        check_min(1 if registry_tasks else 0, 'data', self, 'max_per_task')
        check_min(1 if registry_tasks or self.files else 0, 'data', self, 'held_out')
        check_min(1, 'data', self, 'sequence_length', 'batch_size', 'streams')
        check_max(_MAX_QUESTIONS, 'data', self, 'max_per_task', 'held_out', 'validation')
        check_max(_MAX_WORKERS, 'data', self, 'workers')
        check_field(
            self.batch_size % self.streams == 0,
            'data.streams',
            self.streams,
            f'a divisor of data.batch_size, {self.batch_size}',
        )
        check_min(0, 'data', self, 'validation', 'workers')
        data.check_sources(self.sources)
        data.dataset_settings(self.form, self.task_settings)

    def _check_template(
        self, question_tasks: Collection[str], prompt_datasets: Collection[str]
    ) -> None:
        """Check that the tasks can be used with the prompt template.

        Args:
            question_tasks: Tasks and files with plain questions. They cannot use 'bare', because it
                adds no text around a question.
            prompt_datasets: Public datasets, whose prompts are complete. They cannot use 'plain',
                because it adds text to the prompt.

        Raises:
            UserError: A task cannot be used with the template.
        """
        check_field(
            not question_tasks or self.template != 'bare',
            'data.template',
            self.template,
            f"'plain', 'chatml' or 'chat' for {', '.join(question_tasks)}, whose questions need a "
            'prompt template',
        )
        check_field(
            not prompt_datasets or self.template != 'plain',
            'data.template',
            self.template,
            "'bare', 'chatml' or 'chat' for public datasets, whose prompts are complete",
        )

    @property
    def trained_tasks(self) -> list[str]:
        """Names of the tasks that are trained on; those from files come last."""
        return [*self.tasks, *(task.name for task in self.file_tasks)]

    def weights_of(self, tasks: Iterable[str]) -> list[float]:
        """Return the weights of some of the tasks, in the order of the names; [] without weights.

        Args:
            tasks: Names of tasks that are trained on.
        """
        by_task = dict(zip(self.trained_tasks, self.weights, strict=bool(self.weights)))
        return [by_task[name] for name in tasks if by_task]

    @property
    def store(self) -> data.Store:
        """Store of the prepared public datasets."""
        return data.open_store(self.directory, self.sources, self.skip_broken)

    @property
    def file_tasks(self) -> list[data.FileTask]:
        """Tasks from files, with their settings.

        Raises:
            UserError: An entry of `files` or `file_settings` is not valid.
        """
        return data.file_tasks(
            self.files,
            self.file_settings,
            question_field=self.question_field,
            answer_field=self.answer_field,
            scorer=self.scorer,
            turns_field=self.turns_field,
        )


def check_task(field: str, name: str, files: Collection[str] = ()) -> None:
    """Check that a task exists.

    Args:
        field: Dotted name of the config field, for the message.
        name: Name of the task: a public dataset, a task in the registry, or one of `files`.
        files: Names of the config's tasks from files.

    Raises:
        UserError: The name is unknown.
    """
    known = {*data.DATASETS, *data.task_names(), *files}
    if name not in known:
        raise errors.unknown_name(f'task in {field}', name, known)
