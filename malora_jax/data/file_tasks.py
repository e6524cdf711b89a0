"""Tasks from the user's own files: the file, its question and answer fields, and the scorer."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence

from malora_jax import cloud_storage
from malora_jax.data.examples import Example
from malora_jax.data.field_patterns import fill_pattern, parse_pattern
from malora_jax.data.file_rows import SUFFIXES, Row, check_file, is_utf_8, read_rows
from malora_jax.data.file_splits import FileExamples, split_examples
from malora_jax.data.scorers import SCORERS
from malora_jax.data.scoring import GenerationScoring
from malora_jax.data.splits import TaskSplit
from malora_jax.errors import UserError, unknown_name
from malora_jax.progress import track


@dataclasses.dataclass(frozen=True)
class FileTask:
    r"""A task whose examples are the rows of a file.

    A pattern is the name of a field, or text with field names in braces, such as
    '{context}\n{question}', where the two characters \n represent a line break.

    For example::

        task = FileTask('faq', 'faq.jsonl', 'question', 'answer', 'exact_match')
        split = task.split(seed=0, max_per_task=0, held_out=100)

    Attributes:
        name: Name of the task in configs and results.
        path: Path of the file, relative to the current directory; ~ is the home directory; or
            gs://BUCKET/PATH.
        question_field: Pattern of the question.
        answer_field: Pattern of the answer.
        scorer: Name of the scorer.
        test_file: Path of a file of the same format with the held-out questions; '' = some
            questions of `path` are held out.
        turns_field: Name of a field with a conversation: a list of texts, alternating between user
            and model. The last answer is scored, and `question_field` and `answer_field` are not
            used. '' = each row is a single question and answer.

    Raises:
        UserError: The name, a file type, a pattern or the scorer is invalid.
    """

    name: str
    path: str
    question_field: str
    answer_field: str
    scorer: str
    test_file: str = ''
    turns_field: str = ''

    def __post_init__(self):
        if not self.name or '/' in self.name:
            raise UserError(
                f'data.files: the task name {self.name!r} must not be empty or hold a slash.'
            )
        for file in filter(None, (self.path, self.test_file)):
            _check_suffix(file)
        for pattern in (self.question_field, self.answer_field):
            parse_pattern(pattern)
        if self.scorer not in SCORERS:
            raise unknown_name('data.scorer', self.scorer, SCORERS)

    @property
    def scoring(self) -> GenerationScoring:
        """Scoring rule: the task's scorer compares the generated answer with the right ones."""
        return GenerationScoring(self.scorer, self.scorer, self.score)

    def score(self, prediction: str, example: Example) -> float:
        """Return the best score over all `answers` that the file has for the question."""
        return max(
            SCORERS[self.scorer](prediction, _with_answer(example, answer))
            for answer in example.metadata['answers']
        )

    def split(self, seed: int, max_per_task: int, held_out: int, validation: int = 0) -> TaskSplit:
        """Read the file and its test file, if any, and split the examples as in `split_examples`.

        Args:
            seed: Seed of the run; each seed holds out different questions.
            max_per_task: Maximum number of training questions; 0 = all. If several rows have the
                same question, all of them are kept.
            held_out: Number of held-out questions; with a test file, the maximum number.
            validation: Number of validation questions, whose loss chooses the checkpoint.

        Raises:
            UserError: A file is broken, too small, or shares questions with its test file.
        """
        examples = read_examples(self, self.path)
        test = read_examples(self, self.test_file) if self.test_file else None
        return split_examples(self, examples, test, seed, max_per_task, held_out, validation)


_SETTINGS = ('question_field', 'answer_field', 'scorer', 'test_file', 'turns_field')


def file_tasks(
    files: Sequence[str],
    settings: Sequence[str],
    *,
    question_field: str,
    answer_field: str,
    scorer: str,
    turns_field: str = '',
) -> list[FileTask]:
    """Return the file tasks that a config's `data` section describes.

    For example::

        file_tasks(
            ['faq=faq.jsonl'],
            ['faq.scorer=rouge_l'],
            question_field='question',
            answer_field='answer',
            scorer='exact_match',
        )

    Args:
        files: Entries 'NAME=PATH', or 'PATH' for a task that is named after the file.
        settings: Entries 'NAME.FIELD=VALUE', which set a field of `FileTask` for one task.
        question_field: Default pattern of the question.
        answer_field: Default pattern of the answer.
        scorer: Default name of the scorer.
        turns_field: Default name of the field with the turns.

    Raises:
        UserError: An entry is malformed or has an unknown name, or two tasks have the same name.
    """
    paths = [_name_and_path(entry) for entry in files]
    by_name: dict[str, dict[str, str]] = {
        name: {
            'question_field': question_field,
            'answer_field': answer_field,
            'scorer': scorer,
            'turns_field': turns_field,
        }
        for name, _ in paths
    }
    if len(by_name) < len(paths):
        names = ', '.join(name for name, _ in paths)
        raise UserError(
            f"data.files: two tasks have the same name ({names}); write 'OTHER_NAME=PATH'."
        )
    for entry in settings:
        name, field, value = _setting(entry)
        if name not in by_name:
            raise unknown_name('task in data.file_settings', name, by_name)
        if field not in _SETTINGS:
            raise unknown_name('field in data.file_settings', field, _SETTINGS)
        by_name[name][field] = value
    return [FileTask(name, path, **by_name[name]) for name, path in paths]


def read_examples(task: FileTask, file: str) -> FileExamples:
    """Read the examples of a task's `path` or `test_file`.

    White space around questions and at the end of answers is dropped.

    Raises:
        UserError: The file cannot be read or has no rows, or a row lacks a question or an answer.
            Or the scorer does not suit a row: it would score a prediction that equals the row's
            own answer as wrong.
    """
    examples: dict[tuple[tuple[str, str], ...], Example] = {}
    rows = 0
    path = local_path(file)
    read_row = _turns_reader(task) if task.turns_field else _pattern_reader(task)
    for row in track(read_rows(path), f'read {path.name}', 'row'):
        rows += 1
        example = read_row(row)
        if not SCORERS[task.scorer](example.answer, example):
            raise UserError(
                f"{row.location}: scorer {task.scorer!r} scores the row's own answer "
                f"{example.answer!r} as wrong; fix the row, or use scorer 'exact_match'."
            )
        examples.setdefault((*example.history, (example.question, example.answer)), example)
    if not rows:
        raise UserError(f'{path} has no rows.')
    return FileExamples(list(examples.values()), rows, rows - len(examples), file)


def _pattern_reader(task: FileTask) -> Callable[[Row], Example]:
    question_pieces, answer_pieces = (
        parse_pattern(task.question_field),
        parse_pattern(task.answer_field),
    )

    def read(row: Row) -> Example:
        question = fill_pattern(question_pieces, 'question_field', row).strip()
        answer = fill_pattern(answer_pieces, 'answer_field', row).rstrip()
        return Example(question, answer, {'row': row.location})

    return read


def _turns_reader(task: FileTask) -> Callable[[Row], Example]:
    def read(row: Row) -> Example:
        texts = row.fields.get(task.turns_field)
        if not isinstance(texts, list) or not texts or len(texts) % 2:
            raise UserError(
                f'{row.location}: field {task.turns_field!r} must be a list with an even number of '
                'texts, alternating between user and model.'
            )
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or not text.strip() or not is_utf_8(text):
                raise UserError(
                    f'{row.location}: text {number} of {task.turns_field!r} must be text, not '
                    'empty, and UTF-8.'
                )
        turns = [
            (question.strip(), answer.rstrip())
            for question, answer in zip(texts[::2], texts[1::2], strict=True)
        ]
        *earlier, (question, answer) = turns
        return Example(question, answer, {'row': row.location}, tuple(earlier))

    return read


def file_digests(tasks: Sequence[FileTask]) -> dict[str, str]:
    """Return the SHA-256 digest of each file of the tasks, by its path in the config.

    For example::

        file_digests(tasks)  # {'faq.jsonl': '9f86d0…'}

    Raises:
        UserError: A file is missing.
    """
    digests = {}
    for file in [file for task in tasks for file in (task.path, task.test_file) if file]:
        path = local_path(file)
        check_file(path)
        with path.open('rb') as content:
            digests[file] = hashlib.file_digest(content, 'sha256').hexdigest()
    return digests


def local_path(file: str) -> pathlib.Path:
    """Return the local path of a file in a config; a file in a bucket is downloaded first.

    Raises:
        UserError: The address of the bucket is malformed, or there is no access to it.
        OSError: The bucket cannot be reached.
    """
    return cloud_storage.localize(file)


def _with_answer(example: Example, answer: str) -> Example:
    metadata = {**example.metadata, 'answers': (answer,)}
    return dataclasses.replace(example, answer=answer, metadata=metadata)


def _name_and_path(entry: str) -> tuple[str, str]:
    name, equals, path = entry.partition('=')
    return (name, path) if equals else (pathlib.PurePath(entry).stem, entry)


def _setting(entry: str) -> tuple[str, str, str]:
    left, equals, value = entry.partition('=')
    name, dot, field = left.rpartition('.')
    if not (equals and dot):
        raise UserError(
            f"data.file_settings: {entry!r} is not of the form 'TASK.FIELD=VALUE', such as "
            "'faq.question_field=title'."
        )
    return name, field, value


def _check_suffix(file: str) -> None:
    suffix = pathlib.PurePath(file).suffix.lower()
    if suffix == '.json':
        raise UserError(
            f'{file} is a .json file; convert it to .jsonl, with one JSON object per line.'
        )
    if suffix not in SUFFIXES:
        raise UserError(
            f'{file} has an unsupported type: the name must end in {", ".join(SUFFIXES)}.'
        )
