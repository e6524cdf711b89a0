"""Tables of the documentation on the stages of UltraLink."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docs.records import load
from malora_jax import markdown
from malora_jax.ultralink.languages import LANGUAGES


def ultralink() -> str:
    """Return the table of the measurements of UltraLink's stages, with their commands."""
    rows = [['what was measured', 'command', 'result']]
    for name, (what, describe) in _ULTRALINK.items():
        record = load(f'ultralink_{name}')
        values = record['values']
        command = f'`{record["command"]}`' if record['command'] else ''
        rows.append([what.format(**values), command, describe(values)])
    return markdown.table(rows)


def ultralink_estimates() -> str:
    """Return the table of estimated numbers as multiples of the counts of the stub endpoint."""
    head = ['stage', 'without cached replies', 'after a preview of 20 of 80 items']
    kinds = ('requests', 'prompt tokens', 'completion tokens')
    rows = [
        [f'`{stage}`', *(_ratios(kinds, ratios[basis]) for basis in ('assumed', 'measured'))]
        for stage, ratios in load('ultralink_estimates')['values'].items()
    ]
    return markdown.table([head, *rows])


def _ratios(kinds: Sequence[str], ratios: Sequence[float]) -> str:
    return ', '.join(f'{kind} {ratio:.2f}' for kind, ratio in zip(kinds, ratios, strict=True))


def _kills(values: Mapping[str, Any]) -> str:
    return (
        f'{values["files"]} files, with the same bytes; of {values["cached_at_a_kill"]} replies '
        f'that were cached at a kill, {values["repeated_although_cached"]} were requested again; '
        f'{values["repeated_in_flight"]} requests in flight at a kill were repeated'
    )


def _memory(values: Mapping[str, Any]) -> str:
    tenths = {*values['memory_mib']}
    memory = ' to '.join(str(mib) for mib in sorted({min(tenths), max(tenths)}))
    return f'{memory} MiB after each tenth; {values["documents_per_s"]} documents/s'


def _near_duplicates(values: Mapping[str, Any]) -> str:
    recalls = (
        f'recall {", ".join(f"{recall:.2f}" for recall in found)} in {language}'
        for language, found in values['recall'].items()
    )
    return f'{"; ".join(recalls)}; precision {values["precision"]:.2f}'


# Rows of the table of measurements: what was measured, and a function that describes the result.
_ULTRALINK: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    'kills': (
        '{kills} SIGKILLs at random moments, dialogues about {segments} segments, an endpoint that '
        'fails',
        _kills,
    ),
    'budget': (
        'requests to translate {rows} English conversations into four languages, pruned to the '
        "paper's shares; a stub gives faulty translations",
        lambda values: (
            f'{values["requests_all"]:,} requests if all are translated before `prune`; '
            f'{values["requests_sampled"]:,} if a sample is translated and topped up; '
            f'{values["rows_kept"]} rows each'
        ),
    ),
    'requests': (
        'throughput of the stage `dialogues`, including the stub endpoint on the same machine',
        lambda values: f'{values["requests_per_s"]} requests/s',
    ),
    'memory': (
        'memory of the stage `documents` for {documents:,} documents ({input_mib} MiB), next to '
        'other work',
        _memory,
    ),
    'near_duplicates': (
        'near-duplicates, made by editing {edited_percent[0]}, {edited_percent[1]} or '
        '{edited_percent[2]}% of the words',
        _near_duplicates,
    ),
}


def ultralink_rephrasings() -> str:
    """Return the table of rows of MetaMathQA's kind that are dropped as near-duplicates."""
    rows = [['rows', 'number', 'near-duplicates', 'share']]
    for kind, counts in load('ultralink_rephrasings')['values']['kinds'].items():
        share = counts['dropped'] / counts['rows']
        rows.append([kind, f'{counts["rows"]:,}', f'{counts["dropped"]:,}', f'{share:.0%}'])
    return markdown.table(rows)


def identified_languages() -> str:
    """Return the table of texts that are accepted as texts in their language."""
    rows = [
        [row['language'], row['kind'], f'{row["texts"]:,}', *_accepted_percent(row)]
        for row in load('ultralink_languages')['values']['accepted']
    ]
    return markdown.table([['language', 'texts', 'number', *_IDENTIFIERS.values()], *rows])


def related_languages() -> str:
    """Return the table of texts that are accepted as texts in a related language."""
    values = load('ultralink_languages')['values']
    rows = [
        [
            *(f'{row["language"]} as {row["as"]}', row['kind'], f'{row["texts"]:,}'),
            *_accepted_percent(row),
        ]
        for row in values['relatives']
    ]
    return markdown.table([['language', 'texts', 'number', *_IDENTIFIERS.values()], *rows])


_IDENTIFIERS = {
    'ours': '`identify_language`',
    'fasttext': 'fastText alone',
    'py3langid': 'py3langid alone',
}


def _accepted_percent(row: Mapping[str, Any]) -> list[str]:
    return [f'{row[name] / row["texts"]:.1%}' for name in _IDENTIFIERS]


def offline_dialogues() -> str:
    """Return the table of what became of the segments that a small model was asked about."""
    values = load('ultralink_offline')['values']
    rows = [[f'of {values["asked"]} segments', '']]
    rows.append(['kept, with one turn each', str(values['kept'])])
    rows += [[f'dropped: {reason}', str(n)] for reason, n in values['dropped'].items()]
    return markdown.table(rows)


def humaneval_translations() -> str:
    """Return the table of faults in the released translations of HumanEval."""
    values = load('humaneval_translations')['values']
    faults = {
        'syntax': 'syntax errors',
        'tree': 'changed code',
        'entry_point': 'changed entry point',
        'examples': 'changed examples',
    }
    rows = [['file', 'canonical solutions that pass', 'rows without a fault', *faults.values()]]
    for language, found in values['files'].items():
        passing = f'{found["solutions_pass"]} of {values["problems"]}'
        counts = (str(found[name]) for name in ('without_fault', *faults))
        rows.append([language, passing, *counts])
    return markdown.table(rows)


def ultralink_languages() -> str:
    """Return the table of the built-in languages."""
    rows = [['code', 'language', 'name in the language', 'translations from English']]
    for code, language in LANGUAGES.items():
        translated = 'yes' if language.demonstrations else 'the source'
        rows.append([f'`{code}`', language.name, language.native_name, translated])
    return markdown.table(rows)


PARTS: dict[str, Callable[[], str]] = {
    'ultralink measurements': ultralink,
    'ultralink estimates': ultralink_estimates,
    'ultralink rephrasings': ultralink_rephrasings,
    'identified languages': identified_languages,
    'related languages': related_languages,
    'offline dialogues': offline_dialogues,
    'humaneval translations': humaneval_translations,
    'ultralink languages': ultralink_languages,
}
