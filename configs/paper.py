"""What the paper's two experiments share; see configs/inter_domain.py and configs/intra_domain.py.

Stated in Tables 8 and 9: LLaMA-2 7B; AdamW with weight decay 0.01, warm-up over a tenth of the
steps, dropout 0.05, balance loss times 0.01, and the rank, α, N and K of each method.

Left open there, and chosen here:

- Schedule and clipping: cosine to zero, norm 1.
- MALoRA-Small's α: 2 · r̄ as in all other rows, 16.
- Prompts: UltraEval's form for log-probabilities, trained and scored. LLaMA-2's own scores in Table
  1 (ARC-C 43.1, ARC-E 75.5) are those of that form. The other is --config.data.form=sectioned.
- Sequence length and batch: see the two files. Packing changes what a batch is: rows of a fixed
  length are filled with whole examples, and longer examples are truncated and counted.
"""

from ml_collections import ConfigDict

from configs import common
from malora_jax.errors import UserError, unknown_name


def paper_config(method: str) -> ConfigDict:
    """A config without tasks, learning rate, epochs and batch."""
    config = common.base_config(method)
    config.model.name = 'llama2-7b'
    config.model.dtype = 'bfloat16'

    config.data.template = 'bare'  # The forms are whole prompts.
    config.data.skip_broken = True  # Such rows are listed in the lock file.
    config.data.held_out = 0  # The whole test split.
    config.data.truncate = True

    config.training.steps = 0  # By the epochs.
    config.training.checkpoint_every = 500

    config.evaluation.batch_size = 16  # 16 prompts of eight shots take 17 GB of keys and values.
    return config


def parse(arg: str) -> tuple[str, str]:
    """Method and task of an argument 'METHOD[,task=NAME]'; '' for no task.

    Raises:
        UserError: something else stands after the comma.
    """
    method, comma, setting = arg.partition(',')
    key, _, task = setting.partition('=')
    if comma and not (key == 'task' and task):
        raise UserError(f'{setting!r} must be task=NAME, such as :lora,task=gsm8k.')
    return method, task


def choose(task: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """That task alone, or all tasks if it is ''.

    Raises:
        UserError: it is none of them.
    """
    if task and task not in tasks:
        raise unknown_name('task', task, tasks)
    return (task,) if task else tasks
