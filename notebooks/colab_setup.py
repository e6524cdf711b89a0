"""Install what the notebooks need and this machine lacks, for example on Colab.

The first cell of each notebook calls `prepare`. It imports only the standard library and
`packaging`, which comes with Jupyter, because nothing else may be installed yet.
"""

import configparser
import contextlib
import glob
import importlib
import importlib.metadata
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent


class RestartNeededError(Exception):
    """A package that this session may have loaded was replaced."""

    def _render_traceback_(self) -> list[str]:
        """Return what Jupyter shows: the sentence alone."""
        return [str(self)]


def prepare() -> None:
    """Install missing packages and replace those with the wrong version, then print the devices.

    Raises:
        RestartNeededError: An installed package was replaced.
        subprocess.CalledProcessError: pip failed, and printed why.
    """
    needed, pinned = requirements(accelerator()), quickstart_requirements()
    before = installed_versions([*needed, *pinned])
    lacking = unsatisfied([*needed, *pinned], before)
    if lacking:
        print(f'Installing {", ".join(map(str, lacking))}. This takes a few minutes.', flush=True)
        pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
        # All requirements, so that pip finds versions that fit together. It keeps those that fit.
        subprocess.run([*pip, *map(str, needed)], check=True)
        subprocess.run([*pip, '--no-deps', *map(str, pinned)], check=True)
        importlib.invalidate_caches()
        after = installed_versions([*needed, *pinned])
        replaced = [
            f'{name} {version} by {after[name]}'
            for name, version in before.items()
            if after[name] != version
        ]
        if replaced:
            raise RestartNeededError(
                'Restart the session (on Colab: Runtime > Restart session), and run this cell '
                f'again. This replaced {", ".join(replaced)}.'
            )
    import jax

    # JAX warns about os.fork, but a command (`!`) runs another program right after it.
    warnings.filterwarnings('ignore', r'os\.fork')
    print('jax', jax.__version__, 'on', *jax.devices())


def accelerator() -> str | None:
    """Return the extra of setup.cfg for this machine's accelerator: 'tpu', 'cuda' or None."""
    if glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'):
        return 'tpu'
    return 'cuda' if glob.glob('/dev/nvidia[0-9]*') else None


def requirements(extra: str | None) -> list[Requirement]:
    """Return the requirements in setup.cfg: the library's, the quickstart's and an extra's.

    Args:
        extra: Name of a further extra, such as 'cuda'.
    """
    config = configparser.RawConfigParser()
    config.read(ROOT / 'setup.cfg', 'utf-8')
    extras = config['options.extras_require']
    lists = [config['options']['install_requires'], extras['quickstart']]
    if extra:
        lists.append(extras[extra])
    return [Requirement(line) for text in lists for line in text.splitlines() if line]


def quickstart_requirements() -> list[Requirement]:
    """Return the requirements that are installed without their dependencies."""
    lines = (ROOT / 'requirements-quickstart.txt').read_text('utf-8').splitlines()
    return [Requirement(line) for line in lines if not line.startswith('#')]


def installed_versions(needed: Iterable[Requirement]) -> dict[str, str]:
    """Return the versions of the required packages that are installed, by canonical name."""
    versions = {}
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def unsatisfied(needed: Iterable[Requirement], versions: Mapping[str, str]) -> list[Requirement]:
    """Return the requirements that the installed versions do not satisfy.

    A JAX of the right version satisfies `jax[cuda12]` and `jax[tpu]` too: the JAX of a Colab image
    supports the image's accelerator, and developers chose theirs.

    Args:
        needed: Requirements.
        versions: Installed versions, by canonical name of the package.
    """

    def is_satisfied(requirement: Requirement) -> bool:
        version = versions.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(version, prereleases=True)

    return [requirement for requirement in needed if not is_satisfied(requirement)]
