r"""Serve trained models over HTTP with an OpenAI-compatible API.

Serves one or more runs that share a base model, and the base model itself. Requests select a model
by its name: the name of a run's directory, or the name of the base model. A run whose method has
parameters for each task is one model for each task, with the name DIRECTORY:TASK. Requests: POST
/v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health. Needs the extra `serve`:
pip install '.[serve]'. If the environment variable MALORA_JAX_KEY is set, requests must
carry it as their API key.

Flags by group:
    models   --workdir, --weights
    network  --host, --port, --allowed_hosts
    load     --batch_size, --max_waiting, --timeout
    end      --grace

Examples:
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

_WORKDIR = flags.DEFINE_list(
    'workdir',
    None,
    'Directories of runs or exported adapters to serve, or gs://BUCKET/PATH. Required.',
    required=True,
)
_WEIGHTS = cli.define_weights_flag()
_HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'IP address to listen on; 0.0.0.0 = all addresses of this machine.'
)
_ALLOWED_HOSTS = flags.DEFINE_list(
    'allowed_hosts',
    [],
    'Host names that requests may have in their Host header, besides localhost and --host; other '
    'names get HTTP status 421. IP addresses are always allowed. If the environment variable '
    'MALORA_JAX_KEY sets an API key, all host names are allowed.',
)
_PORT = flags.DEFINE_integer(
    'port', 8000, 'TCP port to listen on; 0 = any free port.', lower_bound=0, upper_bound=65535
)
_BATCH = flags.DEFINE_integer(
    'batch_size',
    32,
    'Maximum number of texts that are decoded together (continuous batching), for all models. The '
    'KV cache grows with the number of texts and with the longest of them.',
    lower_bound=1,
)
_WAITING = flags.DEFINE_integer(
    'max_waiting',
    256,
    'Maximum number of texts that wait to be generated; further requests get HTTP status 429.',
    lower_bound=0,
)
_TIMEOUT = flags.DEFINE_float(
    'timeout',
    600.0,
    'Maximum duration of a request in seconds; a longer one gets HTTP status 504.',
    lower_bound=0.0,
)
_GRACE = flags.DEFINE_float(
    'grace',
    30.0,
    'Maximum time in seconds in which running requests may finish after SIGINT or SIGTERM.',
    lower_bound=0.0,
    upper_bound=1e6,
)
_API_KEY_VARIABLE = 'MALORA_JAX_KEY'


def main() -> None:
    """Serve requests until interrupted; then finish running requests, for at most --grace seconds.

    If the environment variable MALORA_JAX_KEY is set, requests must carry it as their API key.
    SIGINT and SIGTERM end the process with status 0, however often they arrive.

    Raises:
        UserError: The packages of the extra `serve` are not installed, a run cannot be loaded, two
            runs have the same name, or the port is in use.
    """
    # Before the server starts, there are no requests to finish, so a signal ends the process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit_now)
    if not all(importlib.util.find_spec(name) for name in ('fastapi', 'uvicorn')):
        raise errors.missing_extra('fastapi and uvicorn are not installed', 'serve')
    from malora_jax.serving.app import make_app
    from malora_jax.serving.server import serve

    if not _WORKDIR.value or '' in _WORKDIR.value:
        raise errors.UserError(
            f'--workdir={",".join(_WORKDIR.value)} has an empty name; it must name directories.'
        )
    listener = _listen(_HOST.value, _PORT.value)
    models = _models_by_name(inference.load_all(_WORKDIR.value, _WEIGHTS.value))
    app = make_app(
        models,
        batch_size=_BATCH.value,
        max_waiting=_WAITING.value,
        timeout_s=_TIMEOUT.value,
        api_key=os.environ.get(_API_KEY_VARIABLE) or None,
        allowed_hosts=[_HOST.value, *_ALLOWED_HOSTS.value],
    )
    address, port = listener.getsockname()[:2]
    print(f'Serving {", ".join(models)} at http://{address}:{port}/v1', flush=True)
    serve(app, listener, _GRACE.value)
    # Exit without waiting for computations whose results nobody needs.
    cli.exit_process(0)


def _exit_now(*_) -> None:
    """End the process with status 0, even if a second signal arrives meanwhile.

    If the second signal interrupts the flush of stdout, the second call of this function cannot
    flush it again and raises an error. `os._exit` ends the process despite this error.
    """
    try:
        cli.exit_process(0)
    finally:
        os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """Open the port before models are loaded, so that a port in use is reported at once."""
    try:
        return socket.create_server((host, port), reuse_port=False)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise errors.UserError(f'--port: cannot listen on {host}:{port}: {reason}.') from error


def _models_by_name(models: list[inference.LanguageModel]) -> dict[str, inference.LanguageModel]:
    named = {model.name: model for model in models}
    if len(named) < len(models):
        raise errors.UserError(
            '--workdir: two directories have the same name, but requests select a model by its '
            'directory name.'
        )
    base = models[0].base()
    return named | {base.name: base}


if __name__ == '__main__':
    cli.run_without_config(main)
