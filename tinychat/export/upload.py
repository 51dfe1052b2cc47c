"""An export on the Hugging Face hub: what would be uploaded, by which command, and (asked for) the upload."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from tinychat.errors import UserError
from tinychat.export.folder import files_of
from tinychat.models.load import one_line


def offer(folder: Path, repo: str, private: bool, yes: bool) -> None:
    """Print the upload; do it where `yes`. Raises UserError without a token, and where the hub refuses."""
    files = files_of(folder)
    size = sum(path.stat().st_size for path in files.values())
    shown = shlex.join(["hf", "upload", repo, str(folder), ".", "--repo-type", "model", *["--private"] * private])
    print(f"{len(files)} files, {size:,} bytes, for https://huggingface.co/{repo}{' (private)' if private else ''}:")
    print(f"  {shown}")
    if not yes:
        print("nothing was uploaded; look at README.md first, then run that command, or this one again with --yes")
        return
    from huggingface_hub import HfApi, get_token

    token = os.environ.get("HF_TOKEN") or get_token()
    if not token:
        raise UserError("--yes: there is no token to upload with; run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Exported by tinychat")
    except Exception as error:  # the hub's own kinds, and those of the network below it
        raise UserError(f"--to hub: {repo} was not uploaded: {one_line(error)}") from None
    print(f"uploaded: {done}")
