"""Tables with examples of the tokens that are routed to each expert."""

from collections.abc import Sequence

import numpy as np

from malora_jax.analysis import routing
from malora_jax.analysis.adapter_weights import adapted_linears
from malora_jax.analysis.held_out_routing import HeldOutQuestions, HeldOutRouting
from malora_jax.analysis.page import Table
from malora_jax.analysis.router_stats import RouterStats, is_dense, slot_counts
from malora_jax.data import TokenizerProtocol
from malora_jax.training.config import RunConfig

# Maximum number of tokens in a table per expert.
_MAX_TOKENS = 6


def token_tables(
    config: RunConfig,
    stats: RouterStats,
    held_out: HeldOutRouting,
    question_set: HeldOutQuestions,
    tokenizer: TokenizerProtocol,
) -> list[Table]:
    """Return one table for each linear module, with example tokens of each expert.

    A row of a table lists the tokens that are routed to one expert more often than by chance. The
    table shows only one layer: the layer whose experts carry the most information about the task.
    There are no tables if all experts are active for every token, or if `question_set` has no
    frequent tokens.

    Args:
        config: Config of the run.
        stats: Router statistics.
        held_out: Routing of the model on `question_set`, from which each expert's tokens are taken.
        question_set: Held-out questions with their frequent tokens.
        tokenizer: Tokenizer of the base model.
    """
    adapter = config.adapter
    if not len(question_set.tokens) or is_dense(adapter):
        return []
    texts = _readable_tokens(tokenizer, question_set.tokens.tolist())
    tables = []
    for j, linear in enumerate(adapted_linears(config)):
        layer = int(stats.task_information[j].argmax())
        load_WE = np.asarray(held_out.by_token[linear][layer], np.float64)
        uniform_share = load_WE.sum() / (question_set.counts.sum() * adapter.num_experts)
        tokens_by_expert = routing.expert_tokens(
            load_WE, question_set.counts, uniform_share, _MAX_TOKENS
        )
        share_E = routing.shares(
            slot_counts(adapter, held_out.by_question[linear])[:, layer].sum(axis=0)
        )
        rows = [
            [
                f'expert {expert}',
                f'{100 * share:.0f}%',
                ', '.join(f'“{texts[w.token_index]}” {100 * w.share:.0f}%' for w in words)
                or 'none',
            ]
            for expert, (share, words) in enumerate(zip(share_E, tokens_by_expert, strict=True))
        ]
        caption = (
            f'{linear} of layer {layer}: of the {len(texts)} frequent tokens, those whose '
            'occurrences are most often routed to each expert, if more often than with uniform '
            f'routing ({100 * uniform_share:.0f}%). ␣ is a space, ⏎ a line break'
        )
        tables.append(Table(caption, ['', 'slots', 'tokens'], rows, text_columns=(2,)))
    return tables


def _readable_tokens(tokenizer: TokenizerProtocol, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; 'token 123' if token 123 is only part of a character."""
    special = {tokenizer.token_to_id(text): text for text in tokenizer.special_tokens}
    texts = []
    for token in tokens:
        text = special.get(token) or tokenizer.decode([token], continues=True)
        if not text or '\N{REPLACEMENT CHARACTER}' in text:
            text = f'token {token}'
        texts.append(text.replace(' ', '␣').replace('\n', '⏎').replace('\t', '⇥'))
    return texts
