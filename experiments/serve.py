r"""Serves trained models by an HTTP endpoint that speaks as OpenAI's does.

The models are those of one or more runs on one base, each by the name of its directory, and the
base by its own. Requests: POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET
/health. Needs the extra `serve`: pip install 'malora_jax[serve]'.

Example:
    python -m experiments.serve --workdir=runs/quickstart
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
      -d '{"model": "quickstart", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}'
"""

import importlib.util
import os
import signal
import socket

from absl import flags

from experiments import cli
from malora_jax import errors, inference

_WORKDIR = flags.DEFINE_list('workdir', None, 'Of runs or exported adapters.', required=True)
_WEIGHTS = cli.define_weights()
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address; 0.0.0.0 for all of this machine.')
_PORT = flags.DEFINE_integer('port', 8000, 'Port.', lower_bound=0, upper_bound=65535)
_BATCH = flags.DEFINE_integer('batch_size', 8, 'Texts side by side, of each model.', lower_bound=1)
_WAITING = flags.DEFINE_integer('most_waiting', 256, 'Requests that may wait.', lower_bound=0)
_TIMEOUT = flags.DEFINE_float('timeout', 600.0, 'Seconds for a request.', lower_bound=0.0)
_KEY = 'MALORA_JAX_KEY'


def main() -> None:
    """Serves until interrupted; what is being answered is finished first.

    A key that requests must bear is taken from the environment, MALORA_JAX_KEY.

    Raises:
        UserError: the extra is not installed, a run cannot be loaded, two have one name, or the
            port is in use.
    """
    if not all(importlib.util.find_spec(name) for name in ('fastapi', 'uvicorn')):
        raise errors.UserError(
            "fastapi and uvicorn are not installed: run pip install 'malora_jax[serve]'."
        )
    import uvicorn

    from malora_jax.serving.app import make_app

    listener = _listen(_HOST.value, _PORT.value)
    models = _by_name(inference.load_all(_WORKDIR.value, _WEIGHTS.value))
    app = make_app(
        models,
        rows=_BATCH.value,
        most_waiting=_WAITING.value,
        timeout_s=_TIMEOUT.value,
        key=os.environ.get(_KEY) or None,
    )
    address, port = listener.getsockname()[:2]
    print(f'Serving {", ".join(models)} at http://{address}:{port}/v1', flush=True)
    # uvicorn raises the signal that ended it once more, when all is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=30)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port before models are loaded: that it is in use shows at once."""
    try:
        return socket.create_server((host, port), reuse_port=False)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise errors.UserError(f'--port: {host}:{port} cannot be served: {reason}.') from error


def _by_name(models: list[inference.LanguageModel]) -> dict[str, inference.LanguageModel]:
    named = {model.name: model for model in models}
    if len(named) < len(models):
        raise errors.UserError(
            '--workdir: two runs have directories of the same name, by which requests call them.'
        )
    base = models[0].base()
    return named | {base.name: base}


if __name__ == '__main__':
    cli.run_without_config(main)
