"""Choose the packages of a wheel; setup.cfg holds all other settings.

A wheel holds `experiments` and `configs` inside malora_jax, because their names are too generic for
top-level packages. See malora_jax/commands.py.
"""

import sys

from setuptools import find_packages, setup

# An editable installation uses the checkout, which has the packages next to malora_jax. With only a
# root directory in `package_dir`, setuptools puts the checkout on the path and prints no warning.
BUNDLED = (
    []
    if 'editable_wheel' in sys.argv
    else find_packages(include=['configs*', 'experiments*'], exclude=['experiments.peers*'])
)

setup(
    packages=[
        *find_packages(include=['malora_jax*']),
        *(f'malora_jax.bundled.{name}' for name in BUNDLED),
    ],
    package_dir={
        '': '.',
        **{f'malora_jax.bundled.{name}': name.replace('.', '/') for name in BUNDLED},
    },
)
