"""Tokenizer, chat template and end token of an exported model, so that prompts are as in training.

`transformers` reads them from tokenizer.json, tokenizer_config.json and generation_config.json. The
bos token is part of the chat template, because a rendered chat is encoded without special tokens.
For other texts, the post-processor in tokenizer.json adds the bos token, because some versions of
`transformers` ignore `add_bos_token`.
"""

import json
import pathlib

import tokenizers
from tokenizers import processors

from malora_jax import data, files
from malora_jax.export.trained_model import TrainedModel


def write_tokenizer_files(directory: pathlib.Path, trained: TrainedModel) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    Args:
        directory: Directory of the export.
        trained: Trained model.
    """
    tokenizer = trained.base.tokenizer
    backend = _backend(trained)
    settings = {
        **tokenizer.named_tokens,
        'eos_token': tokenizer.id_to_token(data.end_token_id(tokenizer, trained.template)),
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': trained.model.config.context,
        'clean_up_tokenization_spaces': False,
        # The default also lists token types, which these models do not accept.
        'model_input_names': ['input_ids', 'attention_mask'],
        'add_bos_token': tokenizer.bos_id is not None,
        'chat_template': chat_template(trained),
    }
    if tokenizer.bos_id is not None:
        settings['bos_token'] = tokenizer.id_to_token(tokenizer.bos_id)
    files.write_json(directory / 'tokenizer.json', json.loads(backend.to_str()))
    files.write_json(directory / 'tokenizer_config.json', settings)
    # Greedy decoding, as in the evaluation on held-out questions by default.
    files.write_json(
        directory / 'generation_config.json', special_token_ids(trained) | {'do_sample': False}
    )


def special_token_ids(trained: TrainedModel) -> dict[str, int | None]:
    """Return `bos_token_id`, `eos_token_id` (which ends an answer) and `pad_token_id`.

    The end token doubles as padding if the tokenizer has no padding token.
    """
    tokenizer = trained.base.tokenizer
    end = data.end_token_id(tokenizer, trained.template)
    padding = tokenizer.named_tokens.get('pad_token')
    return {
        'bos_token_id': tokenizer.bos_id,
        'eos_token_id': end,
        'pad_token_id': tokenizer.token_to_id(padding) if padding else end,
    }


def chat_template(trained: TrainedModel) -> str:
    """Return the prompt template of training as a Jinja chat template.

    A question rendered with it has the same tokens as in training.
    """
    tokenizer, template = trained.base.tokenizer, trained.template
    source = template.jinja(tokenizer)
    if tokenizer.bos_id is None:
        return source
    bos = tokenizer.id_to_token(tokenizer.bos_id)
    prompt = template.prompt(tokenizer, 'Why?')
    if prompt.startswith(bos):
        return source
    start = json.dumps(bos, ensure_ascii=False)
    if tokenizer.encode(bos + prompt) == data.encode_prompt(tokenizer, template, 'Why?'):
        return f'{{{{ {start} }}}}{source}'
    # SentencePiece puts a space in front of a text without one, but not after a special token.
    space = "('' if text.startswith(' ') else ' ')"
    return f"{{% set text %}}{{{{ '' }}}}{source}{{% endset %}}{{{{ {start} + {space} + text }}}}"


def _backend(trained: TrainedModel) -> tokenizers.Tokenizer:
    """Return the tokenizer, which adds the same special tokens to a text as training does.

    This is a leading bos token if the tokenizer has one, and no other token.
    """
    tokenizer = trained.base.tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.tokenizer_json)
    alone = backend.encode('a', add_special_tokens=False).ids
    if backend.encode('a').ids != data.with_bos(tokenizer, alone):
        if tokenizer.bos_id is None:
            backend.post_processor = processors.Sequence([])
        else:
            bos = tokenizer.id_to_token(tokenizer.bos_id)
            backend.post_processor = processors.TemplateProcessing(
                single=f'{bos} $A',
                pair=f'{bos} $A {bos}:1 $B:1',
                special_tokens=[(bos, tokenizer.bos_id)],
            )
    return backend
