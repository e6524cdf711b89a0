"""Tables of example tokens that are routed to each expert."""

from collections.abc import Sequence

import numpy as np

from malora_jax.analysis import routing
from malora_jax.analysis.page import Table
from malora_jax.analysis.routed import Questions, Routed
from malora_jax.analysis.router_state import RouterState, choices, is_dense
from malora_jax.analysis.weights import linears
from malora_jax.data import Tokenizer
from malora_jax.training.config import RunConfig

# Maximum number of tokens named per expert.
_MOST = 6


def word_tables(
    run: RunConfig, state: RouterState, routed: Routed, asked: Questions, tokenizer: Tokenizer
) -> list[Table]:
    """Return a table of example tokens by expert for each linear module.

    Each table shows the layer whose experts carry the most information about the task. There are
    no tables if all experts are active for every token or no token is frequent enough.

    Args:
        run: Config of the run.
        state: State of the routers.
        routed: Routing sums of the model.
        asked: Held-out questions that were routed.
        tokenizer: Tokenizer of the base model.
    """
    adapter = run.adapter
    if not len(asked.words) or is_dense(adapter):
        return []
    texts = _shown(tokenizer, asked.words.tolist())
    evenly = adapter.router.top_k / adapter.num_experts
    tables = []
    for j, linear in enumerate(linears(run)):
        layer = int(state.information[j].argmax())
        load_WE = np.asarray(routed.words[linear][layer], np.float64)
        found = routing.expert_words(load_WE, asked.counts, evenly, _MOST)
        share_E = routing.shares(choices(adapter, routed.questions[linear])[:, layer].sum(axis=0))
        rows = [
            [
                f'expert {expert}',
                f'{100 * share:.0f}%',
                ', '.join(f'“{texts[w.number]}” {100 * w.share:.0f}%' for w in words) or 'none',
            ]
            for expert, (share, words) in enumerate(zip(share_E, found, strict=True))
        ]
        caption = (
            f'{linear} of layer {layer}: the tokens that most often go to each expert when they '
            f'occur, of {len(texts)} frequent ones, if more often than evenly '
            f'({100 * evenly:.0f}%). ␣ is a space, ⏎ a new line'
        )
        tables.append(Table(caption, ['', 'slots', 'tokens'], rows, texts=(2,)))
    return tables


def _shown(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return readable tokens; a token that is only part of a character is shown by its id."""
    special = {tokenizer.token_to_id(text): text for text in tokenizer.special_tokens}
    texts = []
    for token in tokens:
        text = special.get(token) or tokenizer.decode([token], continues=True)
        if not text or '\N{REPLACEMENT CHARACTER}' in text:
            text = f'token {token}'
        texts.append(text.replace(' ', '␣').replace('\n', '⏎').replace('\t', '⇥'))
    return texts
