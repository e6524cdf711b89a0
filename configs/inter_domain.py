"""The paper's inter-domain experiment, Table 1: LLaMA-2 7B learns six domains jointly.

Commands:
    python -m experiments.prepare --config=configs/inter_domain.py
    python -m experiments.train --config=configs/inter_domain.py:malora --workdir=runs/table1/malora
The argument is any method of the table in docs/methods; each is a row of Table 1. A single-task row
needs seven runs, one for each scored task (a column of Table 1), such as
    python -m experiments.train --config=configs/inter_domain.py:lora,task=gsm8k \
      --workdir=runs/table1/lora-gsm8k

Trains on 30,000 examples of each dataset, sampled uniformly, for 3 epochs: MedMCQA, Magicoder,
Finance Alpaca, MetaMathQA, Alpaca-GPT4 and E2E NLG. Magicoder's data have two parts. As in the
paper, only Evol-Instruct with its 110K examples is used; the other part is the dataset
magicoder_oss.
Scores MedMCQA, HumanEval, GSM8K, Financial PhraseBank, ARC-C, ARC-E and E2E NLG.

Stated in the paper (Table 8): learning rate 5e-4, 3 epochs, batch size 4, β 1, four A100. Not
stated: the sequence length, and whether the batch size is per GPU. Table 10 has 16,384 tokens per
step. This number fits 16 examples: 4 examples of 1,024 tokens on each of the four GPUs. Here a step
has 4 sequences of 1,024 tokens. Several examples are packed into each sequence in place of padding,
so a step also has about 16 examples.

The paper's averages (%): base 37.1; single-task LoRA 57.0, AsyLoRA 55.7; LoRA 54.7, AsyLoRA 54.2,
DoRA 54.6, MoAsyLoRA 51.7, MoLoRA 55.3, MALoRA-Small 55.4, MALoRA 56.3. `python -m
experiments.analyze --workdir=runs/table1 --table=table1` prints the runs next to them.

Hardware: one GPU or TPU with 40 GB, for bfloat16 weights and training.remat='light'. Not yet run at
this size, so there are no measured times or scores.
"""

from ml_collections import ConfigDict

from configs import paper

# Training dataset of each column of Table 1.
TRAINING_DATA = {
    'medmcqa': 'medmcqa',
    'humaneval': 'magicoder_evol',
    'phrasebank': 'finance_alpaca',
    'gsm8k': 'metamathqa',
    'arc_challenge': 'alpaca_gpt4',
    'arc_easy': 'alpaca_gpt4',
    'e2e_nlg': 'e2e_nlg',
}


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the argument 'METHOD[,task=NAME]'.

    NAME is a scored task, a key of `TRAINING_DATA` such as 'gsm8k'. Without it, the run learns all
    tasks jointly.

    Raises:
        UserError: The argument has another form, or an unknown method or task.
    """
    method, task = paper.parse_arg(arg)
    config = paper.paper_config(method)
    scored_tasks = paper.select_tasks(task, tuple(TRAINING_DATA))
    config.data.tasks = tuple(dict.fromkeys(TRAINING_DATA[name] for name in scored_tasks))
    config.evaluation.tasks = scored_tasks
    config.data.max_per_task = 30_000
    config.data.sequence_length = 1024
    config.data.batch_size = 4
    config.optimizer.learning_rate = 5e-4
    config.training.epochs = 3.0
    return config
