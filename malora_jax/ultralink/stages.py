"""Registry of stages: all that the command line and `Stage.run` need to know about each stage.

An entry of `STAGES` defines the flags, the `--help` text and the runner of a stage. CONTRIBUTING.md
describes how to add a stage.
"""

from malora_jax.ultralink import (
    cache_inspection,
    commands,
    criteria,
    dialogues,
    documents,
    explain,
    prune,
    release_import,
    translate,
)
from malora_jax.ultralink.evaluation import answers, judge, mgsm, question_files
from malora_jax.ultralink.stage_command import FileCommand, Stage
from malora_jax.ultralink.text import wikipedia

_ENDPOINT = '--llm=MODEL --base-url=http://127.0.0.1:8000/v1'
_QUESTIONS = (
    "Files of questions: a text file with one question per line, such as OMGEval's; or JSON with "
    '`question` (or `instruction`, as in AlpacaEval) and, if there are ids, `id`.'
)

_ENTRIES: tuple[Stage | FileCommand, ...] = (
    Stage(
        name=release_import.STAGE,
        purpose='Read conversations of public datasets, or the files of a release.',
        details="""\
Public datasets are recognized by their fields: MetaMathQA (`query`, `response`), Magicoder
(`problem`, `solution`; or `instruction`, `response`), ShareGPT (`conversations`), OpenChat
(`items`), UltraChat (`data`) and `messages`. Files are JSON, JSON Lines or Parquet. Conversations
are repaired if possible: for example, answers before the first question are removed, and so is a
last question without an answer. A repeated id gets a suffix. All rows are taken for English ones,
but only chats are checked: those in another language are rejected. Prints the number of repairs of
each kind, of ignored fields, and of rejected rows for each reason.

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
