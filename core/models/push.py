"""Uploading an export to a model hub, through huggingface_hub and its usual login (HF_TOKEN, or `hf auth login`)."""

from pathlib import Path

from core import settings
from core.errors import EspalierError, InputError
from core.models.export import MANIFEST


class PushError(EspalierError):
    """An upload that did not happen. The export itself is whole and stays where it is."""


def require_repo(repo: str) -> None:
    """InputError for a name that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no name of a repository.", "Write organisation/name.") from error


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Create `repo` if it is not there and upload the export; returns its address.

    A repository that is there keeps its visibility. PushError where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    kept = f"The export is whole, in {folder}."
    if settings.offline():
        raise PushError(f"Nothing was uploaded: asking the hub is switched off (HF_HUB_OFFLINE). {kept}",
                        "Unset HF_HUB_OFFLINE and export again with --push.")  # fmt: skip
    api = HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=str(folder),
            repo_id=made.repo_id,
            repo_type="model",
            commit_message="Export from Espalier",
            ignore_patterns=[MANIFEST, ".*"],
        )
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
            message = f"The hub refused the upload to {repo}: not logged in, or no right to write there. {kept}"
            raise PushError(
                message, "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
            ) from error
        raise PushError(f"The hub refused the upload to {repo}: {_short(error)} {kept}", "Try again later.") from error
    except OfflineModeIsEnabled as error:
        raise PushError(f"Nothing was uploaded: asking the hub is switched off. {kept}", "Allow it.") from error
    except OSError as error:
        raise PushError(f"The hub cannot be reached: {_short(error)} {kept}", "Connect, and export again.") from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "huggingface_hub")):
            raise  # the package of the transport has another name in other versions
        raise PushError(f"The hub cannot be reached: {_short(error)} {kept}", "Connect, and export again.") from error
    return str(made)


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
