"""Answers to a file of prompts, each kept as it is written."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from malora_jax import files
from malora_jax.data.rows import check_file
from malora_jax.errors import UserError, within
from malora_jax.inference.language_model import LanguageModel, Sampling
from malora_jax.models.generate import Generator
from malora_jax.models.sampling import keys_of
from malora_jax.models.texts import Ending

_BEGUN_REMEDY = 'remove it to begin anew'


class _Answer(TypedDict):
    row: int
    answer: str


class Written(NamedTuple):
    """What a call has done.

    Attributes:
        answers: how many were written.
        tokens: of these together.
    """

    answers: int
    tokens: int


def answer_file(
    model: LanguageModel, source: pathlib.Path, target: pathlib.Path, sampling: Sampling
) -> Written:
    """Answers each row of a JSON Lines file.

    Answers are kept in TARGET.partial as they end, and the same call goes on from there; when all
    are written, they are put in order and that file takes the name of the target.

    Args:
        model: who answers.
        source: rows with a `prompt`, or with `messages`, a conversation; other fields are kept.
        target: gets the rows, each with its `answer`.
        sampling: how answers are written; what is drawn depends on the number of the row.

    Raises:
        UserError: a row that is none, named by its line; a prompt that does not fit into the
            context with its answer; or an answer file that was begun with other rows or settings.
    """
    rows = _read(source)
    prompts = [_prompt(model, place, row) for place, row in rows]
    partial = target.with_name(target.name + '.partial')
    head = {'rows': len(rows), 'model': model.name} | dataclasses.asdict(sampling)
    done = _begun(partial, head, rows)
    todo = [i for i in range(len(rows)) if i not in done]
    keys = keys_of(sampling.seed, len(rows), 1) if sampling.temperature > 0 else None
    requests = [sampling.request(prompts[i], None if keys is None else keys[i]) for i in todo]
    generator = Generator(
        model.model,
        model.end_id,
        batch_size=model.batch_size,
        max_new_tokens=sampling.max_new_tokens,
    )
    ending = Ending(model.tokenizer, tuple(sampling.stop))
    tokens = 0
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open('a', encoding='utf-8') as file:
        if not done and file.tell() == 0:
            _append(file, head)
        for i, ids in generator.finished(model.variables, requests, ending.is_met, 'answer'):
            number = todo[i]
            done[number] = rows[number][1] | {'answer': ending.text(ids).strip()}
            _append(file, {'row': number} | done[number])
            tokens += len(ids)
    files.write_json_lines(target, [done[i] for i in range(len(rows))])
    partial.unlink()
    return Written(len(todo), tokens)


def _read(source: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Place and fields of each row."""
    check_file(source)
    rows = []
    lines = source.read_bytes().split(b'\n')
    for place, row in files.parse_json_lines(lines, f'{source} line '):
        if not isinstance(row, dict) or not isinstance(
            row.get('prompt', row.get('messages')), str | list
        ):
            raise UserError(f"{place} must be an object with a 'prompt', or with 'messages'.")
        rows.append((place, row))
    if not rows:
        raise UserError(f'{source} has no rows.')
    return rows


def _prompt(model: LanguageModel, place: str, row: Mapping[str, Any]) -> list[int]:
    with within(place):
        return model.prompt(row['prompt'] if 'prompt' in row else row['messages'])


def _begun(
    partial: pathlib.Path, head: Mapping[str, Any], rows: list[tuple[str, dict[str, Any]]]
) -> dict[int, dict[str, Any]]:
    """The answers that are there already, by the number of the row."""
    if not partial.exists():
        return {}
    kept = files.read_json_lines(partial, dict, _BEGUN_REMEDY)
    # A kill may have left a partial last line; drop it so that appending is safe.
    files.write_json_lines(partial, kept)
    if not kept:
        return {}
    found, *answers = kept
    for number, answer in enumerate(answers, start=2):
        files.check_content(_Answer, answer, f'{partial}:{number}', _BEGUN_REMEDY)
    done = {answer.pop('row'): answer for answer in answers}
    same = found == json.loads(json.dumps(head)) and all(
        0 <= number < len(rows) and answer | rows[number][1] == answer
        for number, answer in done.items()
    )
    if not same:
        raise UserError(
            f'{partial} was begun with other prompts or settings: remove it, or choose another '
            '--output.'
        )
    return done


def _append(file: Any, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + '\n')
    file.flush()
    os.fsync(file.fileno())
