import threading

import pytest
import torch
from tiny_models import FAMILIES, random_model, token_ids
from transformers import TextIteratorStreamer

NEW_TOKENS = 12


def generate(model, ids, **options):
    mask = options.pop('attention_mask', torch.ones_like(ids))
    tokens = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        **options,
    )
    return tokens[:, ids.shape[1] :]


@pytest.mark.parametrize('family', FAMILIES)
def test_greedy_decoding_equals_repeated_forward_passes(family):
    model = random_model(family)
    ids = token_ids(1, 6)
    expected = ids
    for _ in range(NEW_TOKENS):
        logits = model(expected).logits[:, -1]
        logits[:, model.config.eos_token_id] = -torch.inf
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    expected = expected[:, ids.shape[1] :]
    assert len(expected.unique()) > 3
    assert torch.equal(generate(model, ids), expected)
    assert torch.equal(generate(model, ids, use_cache=False), expected)


def test_a_batch_with_left_padding_equals_single_prompts(llama):
    prompts = [token_ids(1, length, seed=length) for length in (3, 9, 6)]
    ids = torch.cat([torch.nn.functional.pad(each, (9 - each.shape[1], 0)) for each in prompts])
    mask = (ids != 0).long()
    expected = torch.cat([generate(llama, prompt) for prompt in prompts])
    assert torch.equal(generate(llama, ids, attention_mask=mask), expected)


def test_generated_text_is_streamed(llama, tokenizer):
    ids = token_ids(1, 4)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=generate, args=(llama, ids), kwargs={'streamer': streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert ''.join(pieces) == tokenizer.decode(generate(llama, ids)[0])
    assert len([piece for piece in pieces if piece]) > 3
