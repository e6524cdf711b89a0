"""The repository's address, which one setting holds: `url` in the metadata of setup.cfg."""

import configparser
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def address() -> str:
    """Return the address of the Git repository; '' while the project has none."""
    settings = configparser.RawConfigParser()
    settings.read(ROOT / 'setup.cfg', 'utf-8')
    return settings['metadata'].get('url', '').strip()


def get_the_code() -> str:
    """Return the sentence of the README on how to get the code."""
    if not address():
        return 'Start in a copy of this repository.'
    return f'```sh\ngit clone {address()} malora_jax && cd malora_jax\n```'
