"""Downloads from the Hugging Face Hub into its local cache, with one-sentence error messages."""

import pathlib
from collections.abc import Sequence

import huggingface_hub
from huggingface_hub import errors as hub_errors

from malora_jax.errors import UserError


def download_snapshot(
    repo_id: str,
    allow_patterns: Sequence[str],
    *,
    repo_type: str,
    alternative: str,
    revision: str | None = None,
    ignore_patterns: Sequence[str] = (),
) -> pathlib.Path:
    """Download files of a repository, unless they are already in the local cache.

    Args:
        repo_id: Name of the repository, owner/name.
        allow_patterns: Glob patterns of the files to download.
        repo_type: Repository type, 'model' or 'dataset'.
        alternative: Advice for error messages, an alternative to the download, such as 'set
            model.weights to a directory'.
        revision: Branch, tag or commit; None for the newest.
        ignore_patterns: Glob patterns of files to skip.

    Returns:
        The local directory with the files; its name is the hash of the commit.

    Raises:
        UserError: The name is malformed, the repository or the revision does not exist, its license
            was not accepted, or the Hub cannot be reached or breaks the connection.
        OSError: The cache cannot be written to, or the disk is full.
    """
    page = f'https://huggingface.co/{"datasets/" if repo_type == "dataset" else ""}{repo_id}'
    try:
        directory = huggingface_hub.snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=list(allow_patterns),
            ignore_patterns=list(ignore_patterns),
        )
    except hub_errors.HFValidationError as error:
        raise UserError(
            f'{repo_id} is neither a directory nor a valid name of a {repo_type} on the Hugging '
            'Face Hub.'
        ) from error
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f'{repo_id} is gated: accept its license at {page} and set HF_TOKEN to a token of your '
            'account.'
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f'{page} has no revision {revision}: {alternative}.') from error
    except hub_errors.RepositoryNotFoundError as error:
        missing = f'neither a directory {repo_id} nor a public model of that name'
        raise UserError(
            f'There is {missing if repo_type == "model" else f"no public dataset {repo_id}"} on '
            'the Hugging Face Hub; for a private one set HF_TOKEN.'
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, hub_errors.HfHubHTTPError):
            raise _download_error(repo_id, error.__cause__) from error
        raise UserError(
            f'{repo_id} is {"not a directory and " if repo_type == "model" else ""}not in the '
            'local cache, and the Hugging Face Hub cannot be reached: connect, or '
            f'{alternative}.'
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise _download_error(repo_id, error) from error
    except OSError:
        raise
    except Exception as error:  # The HTTP library differs between versions of huggingface_hub.
        raise _download_error(repo_id, error) from error
    return pathlib.Path(directory)


def _download_error(name: str, error: BaseException) -> UserError:
    reason = ' '.join(str(error).split())
    return UserError(f'{name} could not be downloaded from the Hugging Face Hub: {reason}')
