"""How an exported model is asked: tokenizer, chat template and end of an answer as in training.

`transformers` takes these from tokenizer.json, tokenizer_config.json and generation_config.json.
The token that texts start with stands in the chat template, as a rendered chat is encoded without
special tokens, and in tokenizer.json's post-processor for other texts: `add_bos_token` alone is not
looked at by every version.
"""

import json
import pathlib

import tokenizers
from tokenizers import processors

from malora_jax import data, files
from malora_jax.export.trained import Restored


def write_prompts(directory: pathlib.Path, trained: Restored) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    Args:
        directory: Directory of the export.
        trained: The model.
    """
    tokenizer = trained.base.tokenizer
    backend = _backend(trained)
    settings = {
        **tokenizer.named_tokens,
        'eos_token': tokenizer.id_to_token(data.end_id(tokenizer, trained.template)),
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': trained.model.config.context,
        'clean_up_tokenization_spaces': False,
        # Without token types, which these models do not take.
        'model_input_names': ['input_ids', 'attention_mask'],
        'add_bos_token': tokenizer.bos_id is not None,
        'chat_template': chat_template(trained),
    }
    if tokenizer.bos_id is not None:
        settings['bos_token'] = tokenizer.id_to_token(tokenizer.bos_id)
    files.write_json(directory / 'tokenizer.json', json.loads(backend.to_str()))
    files.write_json(directory / 'tokenizer_config.json', settings)
    # Greedy, as held-out questions are answered.
    files.write_json(
        directory / 'generation_config.json', special_ids(trained) | {'do_sample': False}
    )


def special_ids(trained: Restored) -> dict[str, int | None]:
    """Return the ids of the tokens that start a text, end an answer and fill up a row."""
    tokenizer = trained.base.tokenizer
    end = data.end_id(tokenizer, trained.template)
    padding = tokenizer.named_tokens.get('pad_token')
    return {
        'bos_token_id': tokenizer.bos_id,
        'eos_token_id': end,
        'pad_token_id': tokenizer.token_to_id(padding) if padding else end,
    }


def chat_template(trained: Restored) -> str:
    """Return the template that the model was trained with, in the language of Jinja.

    A question in it has the tokens that it had in training.
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
    # SentencePiece puts a space before a text that has none, but not after a special token.
    space = "('' if text.startswith(' ') else ' ')"
    return f"{{% set text %}}{{{{ '' }}}}{source}{{% endset %}}{{{{ {start} + {space} + text }}}}"


def _backend(trained: Restored) -> tokenizers.Tokenizer:
    """Return the tokenizer, which adds just the token that texts start with."""
    tokenizer = trained.base.tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.definition)
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
