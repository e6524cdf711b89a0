"""Command `report`: statistics of the data next to the paper's, and item counts of stages."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from malora_jax import files, markdown
from malora_jax.analysis import figures
from malora_jax.errors import UserError
from malora_jax.ultralink import paper_statistics
from malora_jax.ultralink.conversations import SUBSETS
from malora_jax.ultralink.counts import (
    ConversationCounts,
    Group,
    Lengths,
    count_conversations,
    mean_length,
    sum_counts,
)
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import StageManifest, read_manifest
from malora_jax.ultralink.text.tokens import CL100K, TokenCounter

REPORT, PLOT = 'report.md', 'lengths.png'
# Edges of the histogram bins, in tokens.
_EDGES = np.geomspace(1, 4096, 37)


def report(
    inputs: Sequence[pathlib.Path],
    count_tokens: TokenCounter,
    output: pathlib.Path,
    stages: Sequence[pathlib.Path] = (),
) -> str:
    """Write `report.md` and `lengths.png`.

    Args:
        inputs: Files or directories with rows of `conversations`.
        count_tokens: Token counter; with cl100k, its counts are comparable with the paper's.
        output: Output directory; created if it does not exist.
        stages: Output directories of stages, finished or not. The report has a section for each,
            in this order: the numbers of items that the stage has read, dropped and kept.

    Returns:
        The text of `report.md`.

    Raises:
        UserError: An input or a manifest is missing or broken, a row is not a conversation, or
            there are no rows.
    """
    counts = count_conversations(inputs, count_tokens)
    if not counts:
        raise UserError(f'{", ".join(map(str, inputs))}: there are no rows to report on.')
    manifests = {path: read_manifest(path) for path in stages}
    parts = [
        '# Data',
        '## Conversations\n\nThe numbers of the paper are in parentheses.',
        conversations_table(counts),
        '## Turns and tokens\n\nA turn is a question with its answer; documents are not counted. '
        f'{_tokenizer_note(count_tokens.name)}',
        turns_table(counts),
        f'![Lengths of questions and answers]({PLOT})',
    ]
    if manifests:
        parts.append('## Stages')
        parts += [stage_section(path, manifest) for path, manifest in manifests.items()]
    output.mkdir(parents=True, exist_ok=True)
    plot_lengths(output / PLOT, counts, count_tokens.name)
    text = '\n\n'.join(parts)
    files.write_text(output / REPORT, text)
    return text


def _tokenizer_note(name: str) -> str:
    """Return a sentence that names the tokenizer, and says if the paper's is another one."""
    if name == CL100K:
        return f'Tokens are those of {CL100K}, as in the paper.'
    return (
        f"Tokens are those of {name}, but the paper's are those of {CL100K}: to compare them, use "
        f'--tokenizer={CL100K}.'
    )


def conversations_table(counts: Mapping[Group, ConversationCounts]) -> str:
    """Return the numbers of conversations in Markdown: a row per language, a column per subset.

    The numbers of the paper are in parentheses, in thousands, for the languages of the paper.
    """
    languages = [code for code in LANGUAGES if any(code in group for group in counts)]
    rows = [['language', *SUBSETS, 'all']]
    for code in (*languages, 'all'):
        ours = [
            sum(
                each.conversations
                for (language, other), each in counts.items()
                if other == subset and code in (language, 'all')
            )
            for subset in SUBSETS
        ]
        numbers = [f'{number:,}' for number in (*ours, sum(ours))]
        theirs = paper_statistics.CONVERSATIONS_THOUSANDS.get(code)
        if theirs:
            thousands = [theirs[subset] for subset in SUBSETS]
            cells = zip(numbers, (*thousands, sum(thousands)), strict=True)
            numbers = [f'{number} ({each:,}K)' for number, each in cells]
        rows.append([code, *numbers])
    assert sum_counts(counts).conversations == sum(ours)
    return markdown.table(rows)


def turns_table(counts: Mapping[Group, ConversationCounts]) -> str:
    """Return a Markdown table of conversations, turns, and mean numbers of tokens.

    The table has a row for each language and subset, for each language, for all data, and for the
    paper's data.
    """
    head = (
        'language',
        'subset',
        'conversations',
        'turns',
        'tokens per turn',
        'tokens per question',
        'tokens per answer',
    )
    rows = [head, *((*group, *_means(each)) for group, each in counts.items())]
    for code in LANGUAGES:
        if sum(code in group for group in counts) > 1:
            rows.append((code, 'all', *_means(sum_counts(counts, code))))
    rows.append(('all', 'all', *_means(sum_counts(counts))))
    paper_turn = paper_statistics.QUESTION_TOKENS + paper_statistics.ANSWER_TOKENS
    conversations = sum(paper_statistics.CONVERSATIONS_THOUSANDS['all'].values())
    rows.append(
        (
            '*in the paper*',
            'all',
            f'{conversations:,}K',
            f'{paper_statistics.TURNS_THOUSANDS:,}K',
            *(
                f'{n:.2f}'
                for n in (
                    paper_turn,
                    paper_statistics.QUESTION_TOKENS,
                    paper_statistics.ANSWER_TOKENS,
                )
            ),
        )
    )
    return markdown.table(rows)


def stage_section(path: pathlib.Path, manifest: StageManifest) -> str:
    """Return the item counts of a stage in Markdown: items read, dropped for each reason, and kept.

    Args:
        path: Directory of the stage, for the heading.
        manifest: Manifest of the directory.
    """
    total = manifest.total
    assert total.items == total.kept + sum(total.dropped.values())
    assert total.rows == sum(shard.rows for shard in manifest.shards)
    share = {name: number / max(1, total.items) for name, number in total.dropped.items()}
    rows = [
        ('', 'items', 'share'),
        ('read', f'{total.items:,}', ''),
        *((f'dropped: {name}', f'{total.dropped[name]:,}', f'{share[name]:.1%}') for name in share),
        ('kept', f'{total.kept:,}', f'{total.kept / max(1, total.items):.1%}'),
    ]
    unfinished = '' if manifest.complete else ', not complete'
    text = f'### {manifest.stage} ({path}{unfinished})\n\n{markdown.table(rows)}'
    text += f'\n\nRows written: {total.rows:,}.'
    if total.counts:
        text += '\n\n' + markdown.table(
            [('counter', 'value'), *((name, f'{n:,}') for name, n in total.counts.items())]
        )
    return text


@figures.without_mathtext
def plot_lengths(
    path: pathlib.Path, counts: Mapping[Group, ConversationCounts], tokenizer: str
) -> None:
    """Plot the length distributions of questions and answers.

    The figure has a column for each subset, a row for questions and one for answers, and a line for
    each language.

    Args:
        path: PNG file to write.
        counts: Counts of each language and subset.
        tokenizer: Name of the tokenizer, for the axes.
    """
    subsets = [subset for subset in SUBSETS if any(subset in group for group in counts)]
    figure = Figure(figsize=(3.4 * len(subsets) + 1.2, 5.2), layout='constrained')
    panels = figure.subplots(2, len(subsets), squeeze=False, sharex=True)
    colors = dict(zip(LANGUAGES, figures.color_cycle(len(LANGUAGES)), strict=True))
    for column, subset in zip(panels.T, subsets, strict=True):
        for axes, kind in zip(column, ('questions', 'answers'), strict=True):
            for (language, other), each in counts.items():
                if other == subset:
                    shares = 100 * _binned(getattr(each, kind))
                    axes.stairs(shares, _EDGES, color=colors[language], label=language, lw=1.5)
            axes.set(xscale='log', xlim=(_EDGES[0], _EDGES[-1]), ylim=(0, None))
            axes.xaxis.set_major_formatter('{x:,.0f}')
            axes.grid(alpha=0.3)
        column[0].set_title(subset, fontsize=10)
        column[1].set_xlabel(f'tokens of {tokenizer}')
    panels[0, 0].set_ylabel('questions (%)')
    panels[1, 0].set_ylabel('answers (%)')
    lines = {
        label: line
        for axes in panels[0]
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    languages = [language for language in LANGUAGES if language in lines]
    handles = [lines[language] for language in languages]
    figure.legend(handles, languages, frameon=False, loc='outside right upper')
    figures.save(figure, path)


def _means(counts: ConversationCounts) -> list[str]:
    """Return the last five cells of a table row: counts of conversations and turns, and means.

    The means are the numbers of tokens per turn, per question and per answer.
    """
    question, answer = mean_length(counts.questions), mean_length(counts.answers)
    numbers = (f'{counts.conversations:,}', f'{counts.turns:,}')
    return [*numbers, *(f'{value:.2f}' for value in (question + answer, question, answer))]


def _binned(lengths: Lengths) -> np.ndarray:
    """Return the share of texts in each bin, clipping lengths to the range of the bins."""
    sizes, numbers = np.array(list(lengths.items())).T
    inside = np.clip(sizes, _EDGES[0], _EDGES[-1])
    counts, _ = np.histogram(inside, _EDGES, weights=numbers)
    return counts / numbers.sum()
