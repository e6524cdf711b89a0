"""UltraLink-LM for two CPU cores: SmolLM2-135M learns chats in several languages, each as a task.

Command:
    python -m experiments.train --config=configs/ultralink_lm_small.py:malora \
      --workdir=runs/ultralink_lm_small --config.data.files="('en=en.jsonl','fr=fr.jsonl')"

The argument and the files are the same as in configs/ultralink_lm.py. SmolLM2 knows English and
hardly any other language, so this config shows that the recipe works, not how well.

Chats longer than 512 tokens are truncated, and the log warns of it. Released dialogues begin with a
document of up to 2,000 tokens, so make shorter segments for this config; docs/guides/ultralink.md
has the commands (`documents --segment-tokens=200`, `dialogues --context-tokens=320`).

Differences from configs/ultralink_lm.py: SmolLM2's own ChatML template, learning rate 1e-3, 200
steps of 4 packed rows of 512 tokens, uniform sampling of the languages, and 16 held-out chats each.

Hardware and time: two CPU cores and 4 GB of memory; at 200 tokens a second about 35 minutes.
"""

from ml_collections import ConfigDict

from configs import ultralink_lm


def get_config(arg: str = 'malora') -> ConfigDict:
    """Return the config for the method named by `arg`; the user must set `data.files`."""
    config = ultralink_lm.get_config(arg)
    config.model.name = 'smollm2-135m'
    config.model.dtype = 'float32'
    config.data.template = 'chatml'
    config.data.size_exponent = 0.0
    config.data.held_out = 16
    config.data.validation = 16
    config.data.sequence_length = 512
    config.data.batch_size = 4
    config.optimizer.learning_rate = 1e-3
    config.training.epochs = 0.0
    config.training.steps = 200
    config.training.remat = 'light'
    config.training.checkpoint_every = 50
    config.training.evaluate_every = 50
    config.evaluation.max_new_tokens = 512  # Longer held-out answers are an error.
    return config
