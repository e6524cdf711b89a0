r"""Chat with a trained model, or have it answer a file of prompts.

Without --input, starts a chat: an empty line begins a new conversation, Ctrl-D ends. With --input,
reads a JSON Lines file whose rows have a `prompt` or `messages`, and writes the rows to --output
with an `answer` each. Answers are saved as they finish, and the same command resumes from them.

Flags by group:
    model     --workdir, --weights, --task
    files     --input, --output, --batch_size
    sampling  --max_new_tokens, --stop, --temperature, --top_k, --top_p, --seed

Examples:
    python -m experiments.generate --workdir=runs/quickstart
    python -m experiments.generate --workdir=runs/quickstart --input=prompts.jsonl \
      --output=answers.jsonl --max_new_tokens=64
"""

import sys
import time

from absl import flags

from experiments import cli
from malora_jax import cloud_storage, errors, inference, shutdown
from malora_jax.inference.batch import answer_file
from malora_jax.inference.language_model import GenerationConfig, LanguageModel

_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run or exported adapter to generate with, or gs://BUCKET/PATH. Required.',
    required=True,
)
_WEIGHTS = cli.define_weights_flag()
_TASK = flags.DEFINE_string(
    'task',
    '',
    "Name of the task whose parameters answer, with a method that has parameters for each task; '' "
    'with all others.',
)
_INPUT = flags.DEFINE_string(
    'input',
    None,
    'JSON Lines file whose rows have a `prompt` or `messages`; needs --output. Without it, a chat '
    'starts.',
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'JSON Lines file to write the rows of --input into, each with its `answer`.',
)
_BATCH = flags.DEFINE_integer(
    'batch_size',
    32,
    'Maximum number of prompts of a file that are decoded together (batched generation).',
    lower_bound=1,
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    'max_new_tokens', 256, 'Maximum number of tokens to generate per answer.'
)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, 'Sampling temperature; 0 = greedy decoding.')
_TOP_K = flags.DEFINE_integer(
    'top_k', 0, 'Top-k sampling: k, the number of most probable tokens to sample from; 0 = all.'
)
_TOP_P = flags.DEFINE_float(
    'top_p',
    1.0,
    'Nucleus sampling: sample from the smallest set of tokens whose probabilities sum to at least '
    'this; 1 = from all.',
)
_STOP = flags.DEFINE_multi_string(
    # absl continues this text: "; repeat this option to specify a list of values".
    'stop',
    [],
    'Text at which generation stops; it is not part of the answer',
)
_SEED = flags.DEFINE_integer('seed', 0, 'Random seed for sampling.')


def main() -> None:
    """Start a chat, or answer a file.

    Raises:
        UserError: Only one of --input and --output is given, a sampling setting is out of range,
            the task is missing or unknown, or `answer_file` refuses a file.
    """
    if (_INPUT.value is None) != (_OUTPUT.value is None):
        raise errors.UserError('--input and --output must be given together, or neither to chat.')
    sampling = GenerationConfig(
        _MAX_NEW_TOKENS.value,
        _TEMPERATURE.value,
        _TOP_K.value,
        _TOP_P.value,
        tuple(_STOP.value),
        _SEED.value,
    )
    model = inference.load(cli.flag_path(_WORKDIR), _WEIGHTS.value, _TASK.value)
    model.batch_size = _BATCH.value
    if _INPUT.value is None or _OUTPUT.value is None:
        with shutdown.interruptible():
            _chat(model, sampling)
        return
    target = cloud_storage.localize(_OUTPUT.value)
    started = time.perf_counter()
    written = answer_file(model, cloud_storage.localize(_INPUT.value), target, sampling)
    seconds = time.perf_counter() - started
    print(
        f'{cloud_storage.remote_path(target)}: {written.answers:,} answers, {written.tokens:,} '
        f'tokens in {seconds:.1f} s, {written.tokens / seconds:.1f} tokens/s.'
    )


def _chat(model: LanguageModel, sampling: GenerationConfig) -> None:
    """Read questions and stream the answers, until the input ends."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # Enables line editing and history.

        print(f'{model.name}: an empty line begins a new conversation, Ctrl-D ends.')
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = input('> ' if sys.stdin.isatty() else '').strip()
        except EOFError:
            return
        if not question:
            messages = []
            continue
        messages.append({'role': 'user', 'content': question})
        answer = ''
        try:
            for piece in model.stream(messages, sampling):
                print(piece, end='', flush=True)
                answer += piece
        except KeyboardInterrupt:
            pass  # Ctrl-C ends the answer, and the conversation continues.
        except errors.UserError as error:
            print(f'{error} A new conversation begins.')
            messages = []
            continue
        print()
        messages.append({'role': 'assistant', 'content': answer.strip()})


if __name__ == '__main__':
    cli.run_without_config(main)
