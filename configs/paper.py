"""Shared settings of the paper's experiments, configs/inter_domain.py and configs/intra_domain.py.

Stated in Tables 8 and 9: LLaMA-2 7B; AdamW with weight decay 0.01, warm-up over a tenth of the
steps, dropout 0.05, load-balancing loss with weight 0.01, and the rank, α, N and K of each method.

Not stated there, and chosen here:

- Schedule and clipping: cosine decay to zero, gradient norm clipped to 1.
- MALoRA-Small's α: 16. This is twice the rank of one expert, as for all other methods.
- Prompts: UltraEval, OpenBMB's evaluation toolkit, has two prompt forms. The form used here, in
  training and scoring, is 'completion': the text of an option follows the question, and the option
  with the highest log-probability is the answer. LLaMA-2's own scores in Table 1 (ARC-C 43.1,
  ARC-E 75.5) fit this form. --config.data.form=sectioned selects the other form, in which the model
  writes the letter of an option.
- Sequence length and batch size: see the two files. A batch consists of packed rows: rows of a
  fixed length are filled with whole examples. Examples longer than a row are truncated, and their
  number is printed.
"""

from ml_collections import ConfigDict

from configs import common
from malora_jax.errors import UserError, unknown_name


def paper_config(method: str) -> ConfigDict:
    """Return the paper's config of a method, without tasks, learning rate, epochs and batch size.

    Args:
        method: Name of the method.
    """
    config = common.base_config(method)
    config.model.name = 'llama2-7b'
    config.model.dtype = 'bfloat16'

    config.data.template = 'bare'  # The forms of public datasets are whole prompts.
    config.data.skip_broken = True  # Skipped rows are listed in the lock file.
    config.data.held_out = 0  # The whole test split.
    config.data.truncate = True

    config.training.steps = 0  # 0 = the length is set by training.epochs.
    config.training.checkpoint_every = 500

    config.evaluation.batch_size = 16  # The KV cache of 16 eight-shot prompts takes 17 GB.
    return config


def parse_arg(arg: str) -> tuple[str, str]:
    """Return the method and the task in a config argument 'METHOD[,task=NAME]'; '' for no task.

    Raises:
        UserError: The text after the comma has another form.
    """
    method, comma, setting = arg.partition(',')
    key, _, task = setting.partition('=')
    if comma and not (key == 'task' and task):
        raise UserError(f'{setting!r} must be task=NAME, such as :lora,task=gsm8k.')
    return method, task


def select_tasks(task: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Return only the named task, or all tasks if the name is ''.

    Args:
        task: Name of a task, or ''.
        tasks: Names of all tasks.

    Raises:
        UserError: There is no such task.
    """
    if task and task not in tasks:
        raise unknown_name('task', task, tasks)
    return (task,) if task else tasks
