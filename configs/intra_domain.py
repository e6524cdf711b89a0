"""The paper's intra-domain experiment, a row of Table 2: LLaMA-2 7B learns five commonsense tasks.

Command, for each row (any method of the table in docs/methods):
    python -m experiments.prepare --config=configs/intra_domain.py
    python -m experiments.train --config=configs/intra_domain.py:malora --workdir=runs/table2/malora
For a single task, the argument is METHOD,task=NAME, such as malora,task=boolq.

Trains on ARC-C, ARC-E, PIQA, OpenBookQA and BoolQ (with its passages), and scores them.

Stated in the paper (Table 9): learning rate 4e-4, 2 epochs, batch size 2, β 1.25, one A100. Not
stated: the sequence length, and the sampling weights of the tasks. Here a step is one packed row of
512 tokens, so that nearly all of BoolQ's passages fit. A row holds about 7 examples, so there are
about a third as many optimizer steps as in the paper. --config.data.sequence_length=192 comes
closer to the paper's two examples per step, but truncates passages. Tasks are sampled in proportion
to their size (size_exponent 1), so each example is drawn once per epoch. Packed rows are then
shuffled, which may move an example into a neighboring epoch.

The paper's averages (%): LoRA 78.48, AsyLoRA 79.42, DoRA 79.56, MoLoRA 79.69, MALoRA 80.47.
`python -m experiments.analyze --workdir=runs/table2 --table=table2` prints the runs next to them.

Hardware: one GPU or TPU with 24 GB for bfloat16 weights. Not yet run at this size, so there are no
measured times or scores. configs/intra_domain_small.py is a version for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import paper

TASKS = ('piqa', 'openbookqa', 'boolq', 'arc_challenge', 'arc_easy')


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the argument 'METHOD[,task=NAME]', where NAME is one of the five tasks.

    Raises:
        UserError: The argument has another form, or an unknown method or task.
    """
    method, task = paper.parse_arg(arg)
    config = paper.paper_config(method)
    config.data.tasks = paper.select_tasks(task, TASKS)
    config.evaluation.tasks = config.data.tasks
    config.data.max_per_task = 0
    config.data.size_exponent = 1.0
    config.data.sequence_length = 512
    config.data.batch_size = 1
    config.adapter.beta = 1.25
    config.optimizer.learning_rate = 4e-4
    config.training.epochs = 2.0
    return config
