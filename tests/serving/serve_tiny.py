"""Serve a small model, or a given one, in a separate process.

`python -m tests.serving.serve_tiny [--rows=4] [--grace=5] [--delay=0] [--model=MODEL]` prints the
address. MODEL is a run, or a config such as configs/quickstart.py for its base model. A delay makes
each decode step of the engine take that many seconds longer, and disables the end token.
"""

import argparse
import socket
import time

import jax

from experiments import cli
from malora_jax.models.engine import Engine
from malora_jax.serving.app import make_app
from malora_jax.serving.server import serve
from malora_jax.ultralink.llm import local
from tests.helpers.language_model import language_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--rows', type=int, default=4)
    parser.add_argument('--grace', type=float, default=5.0)
    parser.add_argument('--delay', type=float, default=0.0)
    parser.add_argument('--model')
    flags = parser.parse_args()
    if flags.model is None:
        jax.config.update('jax_disable_most_optimizations', True)
    model = local.load_model(flags.model) if flags.model else language_model()
    if flags.delay:
        model.end_id = model.model.config.vocab_size  # Texts then have their maximum length.
    step = Engine.step

    def slow_step(engine):
        time.sleep(flags.delay)
        return step(engine)

    Engine.step = slow_step
    listener = socket.create_server(('127.0.0.1', 0))
    print(f'http://127.0.0.1:{listener.getsockname()[1]}', flush=True)
    serve(make_app({'tiny': model}, batch_size=flags.rows), listener, flags.grace)
    cli.exit_process(0)


if __name__ == '__main__':
    main()
