"""Problems of MGSM, asked in each language and scored by the final number."""

import asyncio

import pytest

from malora_jax.errors import UserError
from malora_jax.ultralink.evaluation import mgsm
from malora_jax.ultralink.evaluation.mgsm import MgsmConfig
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.stage import StageRun
from malora_jax.ultralink.stages import STAGES
from malora_jax.ultralink.text.language_identification import identify_language
from tests.ultralink.helpers import FakeModel, read_rows


@pytest.mark.parametrize('language', LANGUAGES)
def test_the_instruction_is_in_the_language(language):
    assert identify_language(LANGUAGES[language].mgsm_instruction) == language


@pytest.mark.parametrize(
    'language, text, right',
    [
        ('en', '80,000 + 50,000 = 130,000. The answer is $70,000.00.', True),
        ('en', 'The answer is 70.000.', False),
        ('zh', '价值增加了120,000美元。答案是70,000。', True),
        ('zh', '答案是7万美元。', True),
        ('zh', '答案是70万。', False),
        ('ru', 'Стоимость выросла на 120 000 $. Ответ — 70 000.', True),
        ('ru', 'Ответ — 70 000,5.', False),
        ('fr', 'La maison vaut 200 000 $. La réponse est 70\u202f000 $.', True),
        ('fr', 'La réponse est 70.000,00.', True),
        ('fr', 'La réponse est 70,5.', False),
        ('es', 'La casa vale 200.000 $. La respuesta es 70.000.', True),
        ('es', 'La respuesta es 70.000,0 $, no 130.000.', True),
        ('es', 'La respuesta es 7.000.', False),
        ('es', 'No lo sé.', False),
    ],
)
def test_answers_in_the_numbers_of_the_language(language, text, right):
    assert mgsm.is_right(text, '70000', language) == right


def test_accuracy_over_a_file(tmp_path):
    path = tmp_path / 'mgsm_fr.tsv'
    path.write_text('Combien font 2 + 2 ?\t4\nCombien font 3 + 3 ?\t6\nEt 5 + 5 ?\t10\n', 'utf-8')
    said = {'2': 'La réponse est 4.', '3': 'Six.', '5': 'La réponse est 11.'}
    model = FakeModel(lambda request: said[request.messages[0].content.split(' + ')[1][0]])
    output = tmp_path / 'out'
    given = StageRun(MgsmConfig('fr'), [path], output, model=model)
    manifest = asyncio.run(STAGES['mgsm'].run(given))
    assert manifest.total.counts == {'right': 1, 'no number': 1}
    assert [(row['number'], row['right']) for row in read_rows(output)] == [
        ('4', True),
        (None, False),
        ('11', False),
    ]
    assert model.requests[0].messages[0].content == (
        f'Combien font 2 + 2 ?\n\n{LANGUAGES["fr"].mgsm_instruction}'
    )


def test_the_summary_counts_answers_without_a_number(tmp_path):
    path = tmp_path / 'mgsm_fr.tsv'
    path.write_text('Combien font 2 + 2 ?\t4\nCombien font 2 + 3 ?\t5\n', 'utf-8')
    model = FakeModel(lambda request: '4' if '2 + 2' in str(request) else 'Je ne sais pas.')
    given = StageRun(MgsmConfig('fr'), [path], tmp_path / 'out', model=model)
    manifest = asyncio.run(STAGES['mgsm'].run(given))
    text = STAGES['mgsm'].summary(given, manifest)
    assert text == '1 of 2 answers correct (50.0%); 1 answer without a number'


def test_a_broken_row_is_named(tmp_path):
    path = tmp_path / 'mgsm_fr.tsv'
    path.write_text('Combien ?\tquatre\n', 'utf-8')
    given = StageRun(MgsmConfig('fr'), [path], tmp_path / 'out', model=FakeModel(lambda _: ''))
    with pytest.raises(UserError, match='line 1'):
        asyncio.run(STAGES['mgsm'].run(given))


def test_problems_in_another_language_are_refused_before_any_request(tmp_path):
    path = tmp_path / 'mgsm_fr.tsv'
    spanish = 'Ana tiene tres manzanas y compra otras dos. ¿Cuántas manzanas tiene ahora?'
    path.write_text(2 * f'{spanish}\t5\n', 'utf-8')
    model = FakeModel(lambda _: '')
    given = StageRun(MgsmConfig('fr'), [path], tmp_path / 'out', model=model)
    message = (
        r'mgsm_fr.tsv: the problems are not in French \(fr\): .* es .*; set --language=es, or '
    )
    with pytest.raises(UserError, match=message):
        asyncio.run(STAGES['mgsm'].run(given))
    assert not model.requests
