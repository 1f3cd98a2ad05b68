"""A model folder on the hub."""

from pathlib import Path

from lpaf_jax.checkpoints import check_saved, is_hub_id
from lpaf_jax.core.errors import LpafError

# What only runs need, one that goes on and others that take a stage over.
_LEFT = ["state.safetensors", "answers.npz"]


def push_model(
    place: Path, repo: str, *, private: bool = False, message: str = "Upload a model"
) -> str:
    """Upload the model in `place`, in one commit, and return its address.

    Args:
        place: a model folder; its README.md is the model card.
        repo: `owner/name`; it is made if it is not there.
        private: whether it is made a private one. One that is there stays as it is.
        message: of the commit.

    Raises:
        LpafError: `repo` is no such name, the folder is damaged, or the hub refuses or cannot
            be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not is_hub_id(repo):
        raise LpafError(f"{repo} is not a repository name: give owner/name")
    check_saved(place)
    hub = HfApi()
    log_in = "log in with hf auth login, or set HF_TOKEN to a token with write access"
    try:
        made = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id, folder_path=place, commit_message=message, ignore_patterns=_LEFT
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = log_in if status in (401, 403) else " ".join(str(error).split())
        raise LpafError(f"the hub refused {repo} ({status}): {why}") from None
    except Exception as error:  # the hub client raises a dozen kinds
        raise LpafError(f"could not upload to {repo}: {' '.join(str(error).split())}") from error
    return str(made)
