r"""Your own tasks: any number of JSONL, CSV, TSV and Parquet files, learnt at once.

A task is a file, and an example is a row of it: a question, an answer. One that names its fields
prompt and completion, another that keeps them in columns title and reply:

    python -m experiments.train --config=configs/your_tasks.py:malora --workdir=runs/mine \
      --config.data.files="('support=support.jsonl','faq=faq.csv')" \
      --config.data.question_field=prompt --config.data.answer_field=completion \
      --config.data.file_settings="('faq.question_field=title','faq.answer_field=reply')"

The argument is the method, as in configs/quickstart.py. All that can be said of files, in `data`:

    files           'NAME=PATH' or just 'PATH' each, in quotes, in a tuple
    question_field  the name of a field, or text with names in braces: '{context}\n{question}'
    answer_field    the same for the answer
    scorer          exact_match; choice: the first word decides ('B' is right in '(b) palms');
                    letter: '(B)' wherever it stands; number: the last one; rouge_l: longest common
                    subsequence of words
    turns_field     instead of question and answer: the name of a field with a list of texts, the
                    user's and the model's in turn; every answer is learnt, the last one is scored
    file_settings   'NAME.FIELD=VALUE': one of the four above for one task, or its test_file
    held_out        questions of each task that are scored before and after
    validation      questions of each task whose loss chooses the best checkpoint
    max_per_task    at most how many questions of each task to train on; 0 = all the others

A held-out question is never trained on: the split is by question, all rows of one are on the same
side, and their answers are all right. Exact repetitions of a row are left out. Adding rows moves no
question from training to the held-out ones; data/file_splits.py says how. A task may bring its own
held-out file, 'faq.test_file=faq_test.csv'. --config.data.tasks adds tasks of reasoning-gym.

Everything is checked before the model is trained, and said with file and line. No example is cut,
unless data.truncate says so: the message tells which sequence_length or max_new_tokens is needed. A
run that is resumed wants its files unchanged.

Hardware and time: two CPU cores and 3.5 GB of memory; at the quickstart's 300 tokens a second, 200
steps of 4 packed rows of 256 tokens take 12 minutes, scoring apart.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = 'malora') -> ConfigDict:
    """The config for the method named by `arg`; `data.files` is to be given."""
    config = common.base_config(arg)
    config.data.tasks = ()
    config.data.files = ()
    config.data.question_field = 'question'
    config.data.answer_field = 'answer'
    config.data.scorer = 'exact_match'
    config.data.turns_field = ''
    config.data.file_settings = ()
    config.data.max_per_task = 0
    config.data.held_out = 64
    config.data.validation = 32
    config.data.sequence_length = 256
    config.data.batch_size = 4
    config.optimizer.learning_rate = 1e-3
    config.training.steps = 200
    config.training.checkpoint_every = 50
    config.training.evaluate_every = 50
    config.evaluation.max_new_tokens = 128
    return config
