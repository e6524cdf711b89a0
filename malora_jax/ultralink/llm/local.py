"""The project's own decoder: a trained model, or the base that a config names."""

import importlib.util
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from malora_jax import data, inference
from malora_jax.data.templates import ChatTemplate
from malora_jax.errors import UserError
from malora_jax.export.identity import base_fingerprint
from malora_jax.inference import LanguageModel
from malora_jax.models import Decoder
from malora_jax.models.engine import Request as EngineRequest
from malora_jax.models.loading.weights import load_base
from malora_jax.serving import answers
from malora_jax.serving.errors import RefusedError
from malora_jax.serving.scheduler import Scheduler
from malora_jax.training.config import run_config
from malora_jax.ultralink.llm.chat import Message, Reply, Request


class Local:
    """A model whose answers an engine writes side by side.

    Attributes:
        name: of the model, with a fingerprint of its weights.
    """

    def __init__(self, model: LanguageModel, rows: int):
        """Starts the thread that writes.

        Args:
            model: who answers.
            rows: answers side by side.
        """
        fingerprint = base_fingerprint(model.variables)
        self.name = f'local:{model.name}:{fingerprint[:12]}'
        self._model = model
        # The stage bounds what waits.
        self._scheduler = Scheduler({self.name: model}, rows, most_waiting=1 << 30)
        self._scheduler.start()

    async def close(self) -> None:
        """Ends the thread."""
        self._scheduler.stop()

    async def complete(self, request: Request) -> Reply:
        """See `Model`; messages that leave no room in the model's context are refused.

        Raises:
            OSError: the model failed.
        """
        prompt, sampling = self._prompt(request.messages), request.sampling
        room = self._model.model.config.context - len(prompt)
        if room < 1:
            return Reply('', 'refused', 0)
        generation = self._scheduler.open(self.name, 1)
        engine_request = EngineRequest(
            prompt,
            min(sampling.max_tokens, room),
            sampling.temperature,
            top_p=sampling.top_p,
            key=jax.random.key(request.draw),
        )
        try:
            self._scheduler.submit(generation.texts[0], engine_request, ())
            (found,) = await answers.whole(generation)
        except RefusedError as error:
            raise OSError(f'The model {self._model.name} failed; see above.') from error
        finally:
            self._scheduler.cancel(generation)
        tokens = len(prompt) + len(found.tokens)
        return Reply(found.text.strip(), found.finish or 'stop', tokens)

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat; fixed templates have no system message, so the user says it."""
        if isinstance(self._model.template, ChatTemplate):
            return self._model.prompt([message._asdict() for message in messages])
        first, *rest = messages
        if first.role == 'system':
            rest[0] = Message(rest[0].role, f'{first.content}\n\n{rest[0].content}')
            messages = rest
        return self._model.prompt([message._asdict() for message in messages])


def load(place: str) -> LanguageModel:
    """A model of the project's own.

    Args:
        place: directory of a run or of an exported adapter; or a config, configs/NAME.py[:METHOD],
            for the base that it names, in the base's own chat template if it has one.

    Raises:
        UserError: there is neither, or it cannot be loaded.
    """
    if pathlib.Path(place).expanduser().is_dir():
        return inference.load(place)
    run = run_config(_config(place).to_dict())
    base = load_base(run.model, run.weights)
    template = data.get_template('chat' if base.tokenizer.chat_template else run.data.template)
    variables = {'params': base.params}
    return LanguageModel(run.model.name, Decoder(run.model), variables, base.tokenizer, template)


def _config(place: str) -> ConfigDict:
    path, _, argument = place.partition(':')
    if not (path.endswith('.py') and pathlib.Path(path).is_file()):
        raise UserError(
            f'--llm=local:{place}: there is no such directory of a run, nor a config such as '
            'configs/quickstart.py.'
        )
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f'--llm=local:{place}: that file is no Python: {error}.') from error
    if not hasattr(module, 'get_config'):
        raise UserError(f'--llm=local:{place}: that file defines no get_config.')
    return module.get_config(argument) if argument else module.get_config()
