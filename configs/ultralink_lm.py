"""UltraLink-LM with adapters: LLaMA-2 13B learns chats in five languages, each as a task.

Each file holds one language, in the format of the released UltraLink data: `id`, and `data`, a list
with the texts of user and model in turn. The model is trained on every answer of a chat; questions
are only context.

Command:
    python -m experiments.train --config=configs/ultralink_lm.py:malora \
      --workdir=runs/ultralink_lm --config.data.files="('en=en.jsonl','zh=zh.jsonl','ru=ru.jsonl',
      'fr=fr.jsonl','es=es.jsonl')"

The argument is the method, as in configs/quickstart.py. `metrics.jsonl` has the loss of each
language, and experiments.analyze shows to which experts each language is routed.

Stated in the paper (Wang et al., ACL 2024): LLaMA-2 13B, all weights trained for 3 epochs of 1,032K
chats, learning rate 2e-5 with cosine decay, warm-up over 0.04 of the steps, batches of 128 chats,
sequences of 4,096 tokens, the template <s>[INST] q [/INST] a </s>. Not stated: packing, the loss
mask, and the mix of languages.

Here only the adapter is trained, at MALoRA's learning rate 5e-4. Chats are packed, with loss on the
answers. Each language is sampled in proportion to its number of chats. A step has 16 rows of 4,096
tokens. They hold about 110 chats, since the average chat has 594 tokens (1,032K chats have 1,623K
turns of 378 tokens).

The paper's averages over the five languages (%): OMGEval 28.2, HumanEval 46.8, MGSM 65.0, ARC 56.7,
HellaSwag 62.9, MMLU 47.7.

Hardware, by experiments.plan: on 80 GB, 8 rows fit with bfloat16 weights and training.remat='full',
so set data.batch_size=8 and training.accumulate=2. Otherwise several devices with mesh.fsdp=-1 and
mesh.data=1. Not yet run at this size, so there are no measured times or scores.
"""

from ml_collections import ConfigDict

from configs import your_tasks


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`; the user must set `data.files`."""
    config = your_tasks.get_config(arg)
    config.model.name = 'llama2-13b'
    config.model.dtype = 'bfloat16'
    config.data.turns_field = 'data'
    config.data.scorer = 'rouge_l'
    config.data.template = 'inst'
    config.data.truncate = True
    config.data.size_exponent = 1.0
    config.data.held_out = 100
    config.data.validation = 100
    config.data.sequence_length = 4096
    config.data.batch_size = 16
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_ratio = 0.04
    config.training.steps = 0  # 0 = the length is set by training.epochs.
    config.training.epochs = 3.0
    config.training.remat = 'full'
    config.training.checkpoint_every = 500
    config.training.evaluate_every = 500
    config.evaluation.batch_size = 16
    config.evaluation.max_new_tokens = 2048  # Longer held-out answers are an error.
    return config
