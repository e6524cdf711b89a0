"""Downloads from the Hugging Face Hub into its local cache, with one-sentence error messages."""

import pathlib
from collections.abc import Sequence

import huggingface_hub
from huggingface_hub import errors as hub_errors

from malora_jax.errors import UserError


def snapshot(
    name: str,
    patterns: Sequence[str],
    *,
    kind: str,
    instead: str,
    revision: str | None = None,
    ignore: Sequence[str] = (),
) -> pathlib.Path:
    """Download files of a repository, unless they are in the local cache.

    Args:
        name: Name of the repository, owner/name.
        patterns: Glob patterns of the files to download.
        kind: Repository type, 'model' or 'dataset'.
        instead: Alternative to the download, as an imperative clause for error messages.
        revision: Branch, tag or commit; None for the newest.
        ignore: Glob patterns of files to skip.

    Returns:
        The local directory with the files; its name is the hash of the commit.

    Raises:
        UserError: The name is malformed, the repository or the revision does not exist, its license
            was not accepted, or the Hub cannot be reached or breaks the connection.
        OSError: The cache cannot be written to, or the disk is full.
    """
    page = f'https://huggingface.co/{"datasets/" if kind == "dataset" else ""}{name}'
    try:
        found = huggingface_hub.snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignore),
        )
    except hub_errors.HFValidationError as error:
        raise UserError(
            f'{name} is neither a directory nor a name that a {kind} on the hub can have.'
        ) from error
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f'{name} is gated: accept its licence at {page} and set HF_TOKEN to a token of your '
            'account.'
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f'{page} has no revision {revision}: {instead}.') from error
    except hub_errors.RepositoryNotFoundError as error:
        missing = f'neither a directory {name} nor a public model of that name'
        raise UserError(
            f'There is {missing if kind == "model" else f"no public dataset {name}"} on the '
            'Hugging Face hub; for a private one set HF_TOKEN.'
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, hub_errors.HfHubHTTPError):
            raise _refused(name, error.__cause__) from error
        raise UserError(
            f'{name} is {"no directory and " if kind == "model" else ""}not in the local cache of '
            f'the Hugging Face hub, which cannot be reached: connect, or {instead}.'
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise _refused(name, error) from error
    except OSError:
        raise
    except Exception as error:  # The HTTP library differs between versions of huggingface_hub.
        raise _refused(name, error) from error
    return pathlib.Path(found)


def _refused(name: str, error: BaseException) -> UserError:
    reason = ' '.join(str(error).split())
    return UserError(f'The Hugging Face hub did not give {name}: {reason}')
