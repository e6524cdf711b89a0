"""Files of questions and answers in each format, the pairs made of them, and their language."""

import gzip
import json

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.evaluation import answer_pairs, question_files
from malora_jax.ultralink.evaluation.file_language import check_file_language
from malora_jax.ultralink.selection import Selection
from malora_jax.ultralink.settings import Settings
from malora_jax.ultralink.stage import StageRun
from tests.ultralink.helpers import write_rows

FRENCH = 'Quel est le plus long fleuve de la France, et quelles villes traverse-t-il ?'
SPANISH = '¿Cuál es el río más largo de España y por qué ciudades pasa antes de llegar al mar?'


def write_outputs(path, pairs):
    """Write questions and answers in the format of OMGEval's model_outputs."""
    objects = [{'instruction': q, 'output': a, 'generator': 'some'} for q, a in pairs]
    path.write_text(json.dumps(objects, ensure_ascii=False, indent=2), 'utf-8')
    return path


def fields(*paths):
    return [dict(row.fields) for row in question_files.read(paths)]


def test_a_text_file_has_one_question_per_line(tmp_path):
    path = tmp_path / 'OMGEval_French.txt'
    path.write_bytes('\ufeffQui ?\r\n\n  Où ?\nQui ?'.encode())
    assert fields(path) == [
        {'id': 'OMGEval_French-1', 'question': 'Qui ?', 'occurrence': 0},
        {'id': 'OMGEval_French-2', 'question': 'Où ?', 'occurrence': 0},
        {'id': 'OMGEval_French-3', 'question': 'Qui ?', 'occurrence': 1},
    ]
    compressed = tmp_path / 'OMGEval_French.txt.gz'
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert fields(compressed) == fields(path)


def test_the_answers_of_a_model_in_the_format_of_omgeval(tmp_path):
    path = write_outputs(tmp_path / 'gpt4.json', [('Qui ?', 'Moi.'), ('Où ?', '')])
    assert fields(path) == [
        {'id': 'gpt4-1', 'question': 'Qui ?', 'answer': 'Moi.', 'occurrence': 0},
        {'id': 'gpt4-2', 'question': 'Où ?', 'answer': '', 'occurrence': 0},
    ]


def test_rows_keep_their_ids(tmp_path):
    path = write_rows(tmp_path / 'rows.jsonl', [{'id': 'a', 'question': 'Qui ?', 'answer': 'Moi.'}])
    assert fields(path) == [{'id': 'a', 'question': 'Qui ?', 'answer': 'Moi.', 'occurrence': 0}]


def test_a_line_that_is_not_utf_8(tmp_path):
    path = tmp_path / 'questions.txt'
    path.write_bytes('Qui ?\nOù ?\n'.encode('latin-1'))
    with pytest.raises(UserError, match=r'questions.txt:2 is not UTF-8'):
        fields(path)


def pairs(tmp_path, ours, theirs, **selection):
    inputs = [write_outputs(tmp_path / 'ours.json', ours)]
    baseline = write_outputs(tmp_path / 'theirs.json', theirs)
    given = StageRun(Settings(), inputs, tmp_path / 'out', selection=Selection(**selection))
    read_pair = answer_pairs.open_baseline(given, baseline)
    return [read_pair(row)[2:] for row in question_files.read(inputs)]


def test_pairs_are_made_by_question_in_any_order(tmp_path):
    ours = [('c', '1'), ('a ', '2'), ('c', '3')]
    theirs = [('a', 'A'), ('b', 'B'), ('c\n', 'C'), ('c', 'D')]
    assert pairs(tmp_path, ours, theirs) == [('1', 'C'), ('2', 'A'), ('3', 'D')]


def test_questions_that_the_baseline_lacks_are_an_error_before_any_request(tmp_path):
    ours = [('Qui ?', '1'), ('Où ?', '2'), ('Quand ?', '3')]
    with pytest.raises(UserError) as error:
        pairs(tmp_path, ours, [('Qui ?', 'A'), ('¿Dónde?', 'B')])
    assert str(error.value) == (
        f"{tmp_path}/ours.json row 2: {tmp_path}/theirs.json has no answer to 'ours-2' ('Où ?'), "
        'in total to 2 of 3 questions: choose a baseline with the same questions, in the same '
        'language.'
    )
    with pytest.raises(
        UserError, match=r"answer to any of the 2 questions, such as 'ours-1' \('a'"
    ):
        pairs(tmp_path, [('a', '1'), ('b', '2')], [('c', 'A')])
    with pytest.raises(UserError, match='in total to 1 of 3 questions'):
        pairs(tmp_path, [('a', '1'), ('a', '2'), ('b', '3')], [('a', 'A'), ('b', 'B')])


def test_questions_that_are_not_selected_need_no_baseline(tmp_path):
    inputs = [write_outputs(tmp_path / 'ours.json', [('a', '1'), ('b', '2')])]
    baseline = write_outputs(tmp_path / 'theirs.json', [('a', 'A')])
    given = StageRun(Settings(), inputs, tmp_path / 'out', selection=Selection(limit=1))
    read_pair = answer_pairs.open_baseline(given, baseline)
    assert read_pair(next(question_files.read(inputs)))[2:] == ('1', 'A')


def test_a_file_in_another_language():
    check_file_language([FRENCH, FRENCH], 'fr', 'a.txt: the questions')
    with pytest.raises(UserError) as error:
        check_file_language([SPANISH, SPANISH], 'fr', 'a.txt: the questions')
    message = 'a.txt: the questions are not in French (fr): the language is es with confidence '
    assert str(error.value).startswith(message)
    assert str(error.value).endswith('; set --language=es, or choose a file in French.')
    with pytest.raises(UserError, match=r'the language is it with [^;]*; choose a file in French'):
        check_file_language(3 * ['Qual è il fiume più lungo d’Italia e quali città attraversa?'],
                            'fr', 'a.txt: the questions')  # fmt: skip


def test_too_little_text_and_traditional_characters_are_accepted():
    check_file_language([SPANISH], 'fr', 'a.txt: the questions')
    check_file_language(
        9 * ['臺灣最長的河流是哪一條？它經過哪些縣市？'], 'zh', 'a.txt: the questions'
    )
    check_file_language(99 * ['2 + 2 = 4'], 'fr', 'a.txt: the questions')
