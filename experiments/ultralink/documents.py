r"""Makes segments of documents in one language, which dialogues can be about.

Documents are kept if they are in the language and have 1,000 to 10,000 tokens; traditional Chinese
becomes simplified. They are cut between lines into segments of fewer than 2,000 tokens; a last one
under 1,000 is dropped. Prints how many were dropped for which reason, and the first of each.

Inputs: output of WikiExtractor (files or directories), Parquet files of wikimedia/wikipedia, or
JSON Lines with `id`, `title` and `text`.

Example:
    python -m experiments.ultralink documents --language=zh --input=wiki/zh \
      --tokenizer=llama2-13b --output=data/zh/documents
"""

import asyncio

from absl import flags

from experiments.ultralink import shared
from malora_jax.ultralink import stage
from malora_jax.ultralink.documents import DocumentsConfig, documents
from malora_jax.ultralink.text.tokens import counter

_LANGUAGE = flags.DEFINE_string('language', None, 'en, zh, ru, fr or es.', required=True)
_INPUT = flags.DEFINE_list('input', None, 'Files and directories of documents.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the segments.', required=True)
_TOKENIZER = flags.DEFINE_string('tokenizer', None, shared.TOKENIZER, required=True)
_DONE = flags.DEFINE_list('done', [], 'Rows of earlier stages, whose titles are left out.')
_WORDS = flags.DEFINE_list(
    'words', [], 'File of words, one a line: documents with any are dropped.'
)
_FIELDS = shared.define_fields(
    DocumentsConfig,
    least_tokens='Of a document.',
    most_tokens='Of a document.',
    segment_tokens='Each segment has fewer.',
    least_segment_tokens='A last segment that has fewer is dropped.',
)
flags.adopt_module_key_flags(shared)


def main() -> None:
    """Makes the segments, and prints the counts.

    Raises:
        UserError: as `documents`.
    """
    manifest = asyncio.run(
        documents(
            DocumentsConfig(_LANGUAGE.value or '', **_FIELDS()),
            counter(_TOKENIZER.value or ''),
            shared.paths(_INPUT),
            shared.output(_OUTPUT),
            done=shared.paths(_DONE),
            words=shared.paths(_WORDS),
        )
    )
    print(stage.describe(manifest))
