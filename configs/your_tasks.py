r"""Your own tasks: any number of JSONL, CSV, TSV and Parquet files, learned jointly.

Each file is a task, and each of its rows is an example: a question and an answer. This command
trains on two files, one with the fields prompt and completion, the other with the columns title and
reply:

    python -m experiments.train --config=configs/your_tasks.py:malora --workdir=runs/mine \
      --config.data.files="('support=support.jsonl','faq=faq.csv')" \
      --config.data.question_field=prompt --config.data.answer_field=completion \
      --config.data.file_settings="('faq.question_field=title','faq.answer_field=reply')"

The argument is the method, as in configs/quickstart.py. All settings of files, in `data`:

    files           tuple of 'NAME=PATH' or just 'PATH', in quotes
    question_field  name of a field, or text with names in braces: '{context}\n{question}'
    answer_field    name of a field or such text, for the answer
    scorer          exact_match; choice: only the first words are compared, without case and
                    punctuation (the model's '(b) palms' is right if the file says 'B');
                    letter: '(B)' anywhere in the answer; number: the last number; rouge_l: longest
                    common subsequence of words
    turns_field     instead of question and answer: name of a field with a list of texts, the user's
                    and the model's in turn; every answer is trained on, the last one is scored
    file_settings   tuple of 'NAME.FIELD=VALUE': settings for task NAME alone; FIELD is
                    question_field, answer_field, scorer, turns_field or test_file
    held_out        number of questions of each task that are scored before and after training
    validation      number of questions of each task whose loss chooses the best checkpoint
    max_per_task    maximum number of questions of each task to train on; 0 = all

A held-out question is never trained on. The split is by question: rows with the same question are
either all for training or all held out. If a held-out question has several answers, each of them
counts as right. Exact duplicates of a row are dropped. You may add rows to a file later: a question
that was used for training is still not held out (see malora_jax/data/file_splits.py). To hold out
the questions of a separate file instead, set test_file in file_settings:
'faq.test_file=faq_test.csv'. --config.data.tasks adds tasks of reasoning-gym.

All files are checked before training starts; error messages name file and line. Examples are not
truncated unless data.truncate is set: the error message names the sequence_length or max_new_tokens
that they need. To resume a run, its files must be unchanged.

Hardware and time: two CPU cores and 3.8 GB of memory; 200 steps of 4 packed rows of 256 tokens take
8 to 16 minutes, depending on the processor, without compilation and scoring.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`; the user must set `data.files`."""
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
