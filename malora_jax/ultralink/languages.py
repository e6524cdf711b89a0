"""The five languages of UltraLink."""

from typing import NamedTuple

from malora_jax import errors


class Language(NamedTuple):
    """A language of the data.

    Attributes:
        code: ISO 639-1 code.
        name: English name.
        native_name: Name in the language itself.
        neighbors: Codes of similar languages. Language identification also knows these languages,
            so that a text in one of them is not mistaken for a text in this language.
        lead_in: Sentence before the document in the first turn of a released dialogue.
    """

    code: str
    name: str
    native_name: str
    neighbors: tuple[str, ...]
    lead_in: str


LANGUAGES = {
    language.code: language
    for language in (
        Language(
            'en',
            'English',
            'English',
            ('de', 'nl', 'da', 'no', 'sv'),
            'Read the document below, then answer the question that follows it.',
        ),
        Language(
            'zh',
            'Chinese',
            '中文',
            ('ja', 'ko', 'yue', 'wuu'),
            '请阅读下面的文档，然后回答文档之后的问题。',
        ),
        Language(
            'ru',
            'Russian',
            'русский',
            ('uk', 'be', 'bg', 'sr', 'mk'),
            'Прочитайте приведённый ниже документ и ответьте на вопрос, который следует за ним.',
        ),
        Language(
            'fr',
            'French',
            'français',
            ('it', 'oc', 'ca', 'ro'),
            'Lisez le document ci-dessous, puis répondez à la question qui le suit.',
        ),
        Language(
            'es',
            'Spanish',
            'español',
            ('pt', 'ca', 'gl', 'it'),
            'Lea el documento siguiente y responda a la pregunta que aparece después.',
        ),
    )
}


def get_language(code: str) -> Language:
    """Return the language with a code.

    Raises:
        UserError: There is no such language.
    """
    if code not in LANGUAGES:
        raise errors.unknown_name('language', code, LANGUAGES)
    return LANGUAGES[code]
