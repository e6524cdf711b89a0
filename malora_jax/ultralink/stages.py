"""Registry of stages: all that the command line and `Stage.run` need to know about each stage.

An entry of `STAGES` defines the flags, the `--help` text and the runner of a stage. CONTRIBUTING.md
describes how to add a stage.
"""

import pathlib
import textwrap
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from malora_jax.data.file_rows import Row
from malora_jax.ultralink import (
    cache_inspection,
    commands,
    criteria,
    dialogues,
    documents,
    explain,
    prune,
    release_import,
    stage,
    translate,
)
from malora_jax.ultralink.evaluation import answers, judge, mgsm, question_files
from malora_jax.ultralink.languages import LANGUAGES
from malora_jax.ultralink.manifest import StageManifest
from malora_jax.ultralink.settings import Settings
from malora_jax.ultralink.stage import PreparedStage, ReadItems, StageRun
from malora_jax.ultralink.text import wikipedia

_COMMAND = 'python -m experiments.ultralink'
_ENDPOINT = '--llm=MODEL --base-url=http://127.0.0.1:8000/v1'
_QUESTIONS = (
    "Files of questions: a text file with one question per line, such as OMGEval's; or JSON with "
    '`question` (or `instruction`, as in AlpacaEval) and, if there are ids, `id`.'
)
_CACHE_HELP = """\
The model's replies are cached in a file, so that no request is paid for twice. The API key of the
endpoint is read from the environment variable OPENAI_API_KEY, or the one in --api_key_variable."""


def _wrapped(command: str) -> str:
    """Return a shell command line, wrapped with backslashes to at most 100 characters per line."""
    lines = textwrap.wrap(command, 92, break_long_words=False, break_on_hyphens=False)
    return '    ' + ' \\\n      '.join(lines)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `experiments.ultralink`.

    Attributes:
        name: First word of the command line; also the name of the stage in manifests.
        purpose: One sentence that says what the command does.
        details: Further text of `--help`.
        examples: Command-line arguments of each example.
        config: Dataclass of settings; each of its fields is a flag.
        inputs: Help text of the standard flag `--input`; '' = no standard flag. Instead, `config`
            may have fields for the inputs.
        find_inputs: Function that returns the input paths for given settings; used if there is no
            standard flag `--input`.
        output: Help text of `--output`; '' if there is no output directory.
        needs: Resources that the command uses: a language model, a tokenizer, a random seed, or
            the languages of rows. Each of them adds its own flags.
        argument: Name of the setting that may be given without a flag, as the first argument; '' =
            all settings need flags.
    """

    name: str
    purpose: str
    details: str
    examples: tuple[str, ...]
    config: type[Settings] = Settings
    inputs: str = ''
    find_inputs: Callable[[Any], Sequence[pathlib.Path]] = lambda config: []
    output: str = ''
    needs: tuple[Literal['model', 'tokenizer', 'seed', 'languages'], ...] = ()
    argument: str = ''

    @property
    def help(self) -> str:
        """Text that `--help` prints above the flags: purpose, details and examples."""
        cache_help = [_CACHE_HELP] if 'model' in self.needs else []
        examples = [_wrapped(f'{_COMMAND} {self.name} {each}') for each in self.examples]
        heading = 'Examples:' if len(examples) > 1 else 'Example:'
        parts = [self.purpose, self.details, *cache_help, '\n'.join([heading, *examples, ''])]
        return '\n\n'.join(parts)


def _describe(run: StageRun[Any], manifest: StageManifest) -> str:
    return stage.format_counts(manifest, run.output)


@dataclass(frozen=True, kw_only=True)
class Stage(Command):
    """A command that turns input rows into output rows, and resumes after an interruption.

    Attributes:
        prepare: Function that reads what a run needs, and returns a `PreparedStage`.
        read: Function that yields the input items; None = `shards.read`, which reads the rows of
            other stages.
        summary: Function that returns the text to print when the stage has finished.
    """

    prepare: Callable[[StageRun[Any]], PreparedStage]
    read: ReadItems | None = None
    summary: Callable[[StageRun[Any], StageManifest], str] = _describe

    def run(self, run: StageRun[Any]) -> Coroutine[Any, Any, StageManifest]:
        """Prepare the stage, and return the coroutine that runs it.

        Preparation may compute for a long time. Because it runs outside the event loop, Ctrl-C
        interrupts it immediately.

        Args:
            run: Settings, data and resources.

        Returns:
            Coroutine that returns the manifest of the finished stage.

        Raises:
            UserError: A setting or an input is wrong (see `prepare` and `stage.run`), or the model
                rejects a request.
            OSError: The model fails or cannot be reached.
        """
        prepared = self.prepare(run)
        return stage.run(
            self.name,
            prepared.process,
            run.inputs,
            run.output,
            settings=self.recorded_settings(run, prepared),
            seed=run.seed,
            concurrency=run.concurrency if 'model' in self.needs else prepared.concurrency,
            shard_items=run.shard_items,
            selection=run.selection,
            read=self.read,
            progress_facts=run.progress_facts,
        )

    def items(self, run: StageRun[Any]) -> Iterable[Row]:
        """Return the selected items of a run."""
        return run.selection.select(stage.read_items(run.inputs, self.read), run.seed)

    def recorded_settings(self, run: StageRun[Any], prepared: PreparedStage) -> dict[str, Any]:
        """Return the settings that the manifest of a run records."""
        settings = run.config.recorded_values
        if 'model' in self.needs:
            settings['llm'] = run.model.name
        if 'tokenizer' in self.needs:
            settings['tokenizer'] = run.token_counter.fingerprint
        language = LANGUAGES.get(settings.get('language', ''))
        if language and language.own_digest:
            settings['language_file'] = language.own_digest
        return {**settings, **prepared.fingerprints}


@dataclass(frozen=True, kw_only=True)
class FileCommand(Command):
    """A command that is not a stage: it writes no manifest and cannot resume.

    Attributes:
        function: Function that returns the text to print and the exit status.
    """

    function: Callable[[StageRun[Any]], tuple[str, int]]


_ENTRIES: tuple[Stage | FileCommand, ...] = (
    Stage(
        name=release_import.STAGE,
        purpose='Read conversations of public datasets, or the files of a release.',
        details="""\
Public datasets are recognized by their fields: MetaMathQA (`query`, `response`), Magicoder
(`problem`, `solution`; or `instruction`, `response`), ShareGPT (`conversations`), OpenChat
(`items`), UltraChat (`data`) and `messages`. Files are JSON, JSON Lines or Parquet. Conversations
are repaired if possible: for example, answers before the first question are removed, and so is a
last question without an answer. A repeated id gets a suffix. Chats in another language than English
are rejected. Prints the number of repairs of each kind, and of rejected rows for each reason.

Released files, LANGUAGE_SUBSET.jsonl, are validated. Invalid rows are skipped, counted, and
reported on stderr with file and line. Attributions that `export` has written are read, too.""",
        examples=(
            '--input=MetaMathQA-395K.json --license=MIT --output=data/en/math',
            '--input=sharegpt_part1.json,sharegpt_part2.json --output=data/en/chat',
            '--input=data/release --output=data/released',
            '--revision=COMMIT --output=data/released',
        ),
        config=release_import.ImportConfig,
        find_inputs=release_import.find_inputs,
        output='Directory to write the rows into.',
        needs=('languages',),
        prepare=release_import.prepare,
        read=release_import.read,
    ),
    Stage(
        name=documents.STAGE,
        purpose='Split documents in one language into segments that dialogues can be about.',
        details="""\
Documents are kept if they are in the given language and have 1,000 to 10,000 tokens; traditional
Chinese is converted to simplified. They are split between lines into segments of fewer than 2,000
tokens; a last segment of fewer than 1,000 tokens is dropped. Prints the number of dropped documents
and the first one for each reason.

Inputs: output of WikiExtractor (files or directories), Parquet files of wikimedia/wikipedia, or
JSON Lines with `id`, `title` and `text`. Text files may be compressed (.gz, .bz2 or .zst).""",
        examples=(
            '--language=zh --input=wiki/zh --tokenizer=llama2-13b --output=data/zh/documents',
        ),
        config=documents.DocumentsConfig,
        inputs='Files and directories of documents: WikiExtractor output, Parquet or JSON Lines.',
        output='Directory to write the segments into.',
        needs=('tokenizer',),
        prepare=documents.prepare,
        read=wikipedia.read,
    ),
    Stage(
        name=dialogues.STAGE,
        purpose='Generate questions and answers about segments, turn by turn, in their language.',
        details="""\
A dialogue is planned with 2 to 6 turns, as in the paper. A question or answer is requested again if
it is truncated, is in another language, mentions "the text", is not self-contained or repeats an
earlier question. If no attempt succeeds, the dialogue ends after its last valid turn, even the
first; without a valid turn, it is dropped. Prints the number of dialogues that ended for each
reason; `stopped` is the planned end.""",
        examples=(
            f'--input=data/fr/documents {_ENDPOINT} --tokenizer=llama2-13b '
            '--output=data/fr/dialogues',
            '--input=data/en/documents --concurrency=8 --llm=local:configs/quickstart.py '
            '--tokenizer=smollm2-135m --output=data/en/dialogues',
        ),
        config=dialogues.DialoguesConfig,
        inputs='Files and directories of segments, which the stage `documents` writes.',
        output='Directory to write the dialogues into.',
        needs=('model', 'tokenizer', 'seed', 'languages'),
        prepare=dialogues.prepare,
    ),
    Stage(
        name=criteria.STAGE,
        purpose='Keep the English conversations that do not depend on a language or culture.',
        details="""\
Conversations with links, of too few or too many characters, or in another language are dropped. A
model scores the others by seven criteria, such as names, places and brands; a conversation that
meets any of them is dropped. Prints the number of dropped conversations for each reason.

Inputs: conversations as other stages write them, such as `import`.""",
        examples=(f'--input=data/en/chat {_ENDPOINT} --output=data/en/agnostic',),
        config=criteria.CriteriaConfig,
        inputs='Files and directories of English conversations.',
        output='Directory to write the kept conversations into.',
        needs=('model', 'seed'),
        prepare=criteria.prepare,
        read=criteria.read,
    ),
    Stage(
        name=translate.STAGE,
        purpose='Translate English conversations and verify each message.',
        details="""\
A conversation is translated message by message. A translation is requested again if it lacks a
number, the final answer, LaTeX, code or an identifier, or is in another language. If no attempt
succeeds, the conversation is dropped. Prints the number of dropped conversations for each reason,
and the number of faults of each kind.""",
        examples=(
            f'--language=fr --input=math.jsonl {_ENDPOINT} --sample=34000 --output=data/fr/math',
            f'--language=fr --input=math.jsonl {_ENDPOINT} --sample=34000 --output=data/fr/math '
            '--preview=5',
        ),
        config=translate.TranslateConfig,
        inputs='Files and directories of English conversations.',
        output='Directory to write the translations into.',
        needs=('model', 'seed'),
        prepare=translate.prepare,
    ),
    Stage(
        name=prune.STAGE,
        purpose='Reduce translations to a budget for each language and subset.',
        details="""\
In every language except English, near-duplicates are removed, and a random sample of the rest is
kept: 32,000 conversations about mathematics and 16,000 about code, as in the paper. Near-duplicates
in mathematics are kept, unless you add --math_near_duplicates=remove. With --english=prune, English
is treated like the other languages. Prints the number of kept and dropped rows of each language and
subset.""",
        examples=('--input=data/fr/translated,data/zh/translated --output=data/pruned',),
        config=prune.PruneConfig,
        inputs='Files and directories of conversations.',
        output='Directory to write the kept conversations into.',
        needs=('seed', 'languages'),
        prepare=prune.prepare,
        summary=prune.summary,
    ),
    FileCommand(
        name=explain.COMMAND,
        purpose='Show what each stage did with an item: kept, or rejected and why.',
        details="""\
Prints an item's way through the stages, in the order of the pipeline: where it was kept, and under
which id; or why it was rejected, with the rejected text and the number of attempts. The id may be
that of a document, of one of its segments, of a conversation, of its translation, or of a released
row. As the first argument, it needs no flag: `explain fr-1204-0 --stages=data`.""",
        examples=(
            '--id=fr-1204-0 --stages=data',
            '--id=gsm8k-1 --stages=data/en/chat,data/fr/translated',
        ),
        config=explain.ExplainConfig,
        needs=('languages',),
        argument='id',
        function=explain.run,
    ),
    FileCommand(
        name=cache_inspection.COMMAND,
        purpose='Show the cached requests and replies of a model: prompts, replies and tokens.',
        details="""\
Prints the number of replies and tokens of each model and stage, and the latest requests; or, with
--item, all prompts and replies of an item.""",
        examples=(
            '--cache=data/fr/answers.sqlite',
            '--cache=data/fr/answers.sqlite --item=fr-1204-0',
        ),
        config=cache_inspection.CacheConfig,
        function=cache_inspection.run,
    ),
    FileCommand(
        name='export',
        purpose='Write conversations in the format of the released dataset, and as training files.',
        details="""\
The output has LANGUAGE_SUBSET.jsonl as released (`id`, `data`), and training/LANGUAGE.jsonl with
all rows of a language, in the format that configs/ultralink_lm.py reads. The files in attribution/
name the source of each row, with its URL and license, and README.md is a data card. Prints the
number of rows of each file.""",
        examples=('--input=data/pruned,data/fr/dialogues --output=data/release',),
        inputs='Files and directories of conversations.',
        output='New directory to write the released files and the training files into.',
        needs=('languages',),
        function=commands.export,
    ),
    FileCommand(
        name='report',
        purpose="Report the number and length of conversations, and each stage's counts.",
        details="""\
Writes report.md, which compares the conversations with the tables of the paper, and lengths.png, a
plot of the lengths of questions and answers. Prints the report. The paper counts tokens with
cl100k. To report on the released files, read them with the stage `import` first.""",
        examples=(
            '--input=data/pruned,data/fr/dialogues --tokenizer=cl100k --output=data/report '
            '--stages=data/fr/documents,data/fr/dialogues,data/pruned',
        ),
        config=commands.ReportConfig,
        inputs='Files and directories of conversations.',
        output='Directory to write the report into.',
        needs=('tokenizer', 'languages'),
        function=commands.report,
    ),
    FileCommand(
        name='check_humaneval',
        purpose='Check a HumanEval file with translated docstrings, row by row.',
        details="""\
Each row must be the original problem except for the prose of its docstring. Prints the faults of
each row, and the number of canonical solutions that pass. The exit status is 1 if any row has a
fault.""",
        examples=('--language=es --input=humaneval_es.json --originals=HumanEval.jsonl.gz',),
        config=commands.HumanevalConfig,
        function=commands.check_humaneval,
    ),
    Stage(
        name=mgsm.STAGE,
        purpose='Evaluate a chat model on the MGSM problems in one language; print its accuracy.',
        details="Each output row has a problem, the model's answer, and whether it is correct.",
        examples=(
            '--language=fr --input=mgsm_fr.tsv --llm=local:runs/fr --output=results/mgsm_fr',
        ),
        config=mgsm.MgsmConfig,
        inputs='Files of MGSM problems: the original TSV, or JSON Lines with `question` and '
        '`answer_number`.',
        output='Directory to write the answers into.',
        needs=('model', 'seed'),
        prepare=mgsm.prepare,
        read=mgsm.read,
        summary=mgsm.summary,
    ),
    Stage(
        name=answers.STAGE,
        purpose='Let a model answer questions, such as those of OMGEval, for `judge` to compare.',
        details='The prompt is the question. Empty and truncated answers are kept and counted.',
        examples=(
            '--input=OMGEval/data/OMGEval_French.txt --llm=local:runs/fr --output=results/answers',
        ),
        config=answers.AnswersConfig,
        inputs=_QUESTIONS,
        output='Directory to write the answers into.',
        needs=('model', 'seed'),
        prepare=answers.prepare,
        read=question_files.read,
    ),
    Stage(
        name=judge.STAGE,
        purpose='Let a model compare answers with those of a baseline, in both orders.',
        details="""\
Prints the win rate, in which a tie counts as half a win, and its 95% interval; or, with
--protocol=omgeval, the win rate and its standard error, as AlpacaEval computes them from one order.
The baseline must have an answer to each question.""",
        examples=(
            '--language=fr --input=results/answers --baseline=davinci.jsonl --llm=JUDGE '
            '--output=results/judge_fr',
            '--language=fr --input=results/answers --baseline=model_outputs/french/gpt4.json '
            '--protocol=omgeval --template=gpt4_template/fr.txt --llm=JUDGE --output=results/fr',
        ),
        config=judge.JudgeConfig,
        inputs='Files and directories of the answers to judge: output of the stage `answers`; rows '
        "with `id`, `question` and `answer`; or a file of OMGEval's model_outputs.",
        output='Directory to write the verdicts into.',
        needs=('model', 'seed'),
        prepare=judge.prepare,
        read=question_files.read,
        summary=judge.summary,
    ),
)
STAGES = {entry.name: entry for entry in _ENTRIES}
