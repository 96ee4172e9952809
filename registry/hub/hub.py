"""Push heads to the Hugging Face Hub and pull them from it.

``hf://user/repo`` is the head at the top of a repository, ``hf://user/repo/name`` one of several.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from headkit.adapters.errors import HeadFormatError, RegistryError, SignatureError, first_line
from headkit.adapters.file_kinds import HEAD, check_output
from headkit.adapters.files import write_atomically
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.schema import check_description
from headkit.registry.resolve import head_file
from headkit.registry.store.reference import check_name
from headkit.registry.store.signing.versions import VERIFY_WITH

from .card import (
    CARD_FILE,
    CONFIG_FILE,
    GENERATED,
    HEAD_FILE,
    build_config,
    config_text,
    render_card,
)

logger = logging.getLogger("headkit")

SCHEME = "hf://"
ATTEMPTS = 10
"""Number of attempts at a commit on top of the newest one, while others push."""
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class HubPlace:
    """The location of a head on the Hub.

    Attributes:
        repo: The repository, ``user/name``.
        folder: Folder of the head in the repository; empty for a head at the top.
        revision: Branch, tag or commit; empty for the default branch.
    """

    repo: str
    folder: str = ""
    revision: str = ""

    @classmethod
    def parse(cls, url: str) -> HubPlace:
        """Read ``hf://user/repo[@revision][/name]``.

        Raises:
            RegistryError: The URL has another form.
        """
        parts = url.removeprefix(SCHEME).split("/")
        if not url.startswith(SCHEME) or len(parts) not in (2, 3):
            raise RegistryError(
                f"{url!r} is not the URL of a head on the Hub, expected hf://user/repo[@revision] "
                "or "
                "hf://user/repo[@revision]/name"
            )
        name, _, revision = parts[1].partition("@")
        repo = f"{parts[0]}/{name}"
        if not _REPO.fullmatch(repo):
            raise RegistryError(f"{repo!r} is not a valid repository name: expected user/repo")
        return cls(repo, check_name(parts[2]) if len(parts) == 3 else "", revision)

    def path(self, file: str) -> str:
        """Return the path of a file of this head in the repository."""
        return f"{self.folder}/{file}" if self.folder else file


def push(
    path: str | Path,
    url: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Push a head to a repository on the Hub, with its configuration and a model card.

    The push is one commit. The card describes all heads of the repository as of the parent commit,
    and the Hub refuses the commit if it has a newer one, so simultaneous pushes lose nothing. A
    README that headkit did not write stays as it is.

    Args:
        path: Path of a head file, or a reference to a head in the store.
        url: ``hf://user/repo`` or ``hf://user/repo/name``. A missing repository is created.
        private: Whether only its owner sees a new repository. Default: the account's setting.
        message: Commit message. Default: the head's architecture and number of classes.
        token: Token for the Hub. Default: ``$HF_TOKEN``, or the token from ``hf auth login``.

    Returns:
        URL of the commit.

    Raises:
        HeadFormatError: The file is not a head file.
        RegistryError: The Hub cannot be reached or refuses the push.
    """
    from huggingface_hub import HfApi

    place = HubPlace.parse(url)
    path = head_file(path)
    head = Head.load(path)
    own = {
        place.path(HEAD_FILE): path.read_bytes(),
        place.path(CONFIG_FILE): config_text(head).encode(),
    }
    message = message or f"Head for {head.architecture}: {head.num_classes} classes"
    api = HfApi(token=token)
    with _translate_errors(url):
        api.create_repo(place.repo, private=private, exist_ok=True)
        for _ in range(ATTEMPTS):
            info = api.model_info(place.repo, revision=place.revision or None)
            names = [one.rfilename for one in info.siblings or ()]
            files = own | _card_files(api, place, info.sha, names, build_config(head))
            commit_url = _commit(api, place, info.sha, files, message)
            if commit_url:
                return commit_url
    raise RegistryError(
        f"{url}: gave up after {ATTEMPTS} attempts, as others kept pushing at the same time: try "
        "again later"
    )


def pull(url: str, out: str | Path | None = None, *, token: str | None = None) -> Path:
    """Download a head from the Hub and return its path.

    Args:
        url: ``hf://user/repo[@revision]`` or ``hf://user/repo[@revision]/name``.
        out: Path to write. Default: the file stays in the Hub's own cache.
        token: See ``push``.

    Raises:
        HeadFormatError: The downloaded file is not a head file.
        SignatureError: ``$HEADKIT_VERIFY_WITH`` is set, and heads on the Hub have no signatures.
        OutputError: ``out`` cannot be written, or does not end in ``.safetensors``.
        RegistryError: The repository has no head there, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    place = HubPlace.parse(url)
    if os.environ.get(VERIFY_WITH):
        raise SignatureError(
            f"${VERIFY_WITH} asks for signatures, and heads on the Hub have none: unset it to pull "
            f"{url}"
        )
    if out is not None:
        check_output(out, HEAD)
    with _translate_errors(url):
        cached = hf_hub_download(
            place.repo, place.path(HEAD_FILE), revision=place.revision or None, token=token
        )
    Head.load(cached)
    return Path(cached) if out is None else write_atomically(out, Path(cached).read_bytes())


def _card_files(
    api: Any, place: HubPlace, commit: str | None, names: Sequence[str], config: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the card of a repository with one more head; nothing if its README is not ours."""

    def read_text(name: str) -> str:
        path = api.hf_hub_download(place.repo, name, revision=commit)
        return Path(path).read_text(encoding="utf-8")

    if CARD_FILE in names and GENERATED not in read_text(CARD_FILE):
        logger.warning(
            "%s: did not update %s, because headkit did not write it", place.repo, CARD_FILE
        )
        return {}
    configs = {place.folder: config}
    for name in names:
        folder, _, file = name.rpartition("/")
        if file == CONFIG_FILE and "/" not in folder and folder != place.folder:
            try:
                other = json.loads(read_text(name))
                if "headkit" not in other:
                    continue
                check_description({**other, **other["headkit"]})
            except (ValueError, TypeError, RecursionError, HeadFormatError) as error:
                logger.warning(
                    "%s: left %s out of the card: %s", place.repo, name, first_line(error)
                )
                continue
            configs[folder] = other
    return {CARD_FILE: render_card(place.repo, configs).encode()}


def _commit(
    api: Any, place: HubPlace, parent: str | None, files: Mapping[str, bytes], message: str
) -> str | None:
    """Commit files on top of ``parent``; return the commit's URL, or None if a newer one exists."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = api.create_commit(
            place.repo,
            [CommitOperationAdd(name, data) for name, data in files.items()],
            commit_message=message,
            revision=place.revision or None,
            parent_commit=parent,
        )
    except HfHubHTTPError as error:
        if error.response.status_code == HTTPStatus.PRECONDITION_FAILED:
            return None
        raise
    return str(commit.commit_url)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Turn errors of the Hub's client into ``RegistryError``."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except (HeadFormatError, RegistryError):
        raise
    except LocalEntryNotFoundError as error:
        raise RegistryError(
            f"{url}: the Hub cannot be reached, and the cache does not have the file"
        ) from error
    except GatedRepoError as error:
        raise RegistryError(f"{url}: the owner of the repository must grant you access") from error
    except RepositoryNotFoundError as error:
        raise RegistryError(
            f"{url}: there is no such repository, or it is private and needs `hf auth login`"
        ) from error
    except EntryNotFoundError as error:
        raise RegistryError(f"{url}: the repository has no {HEAD_FILE} at this path") from error
    except Exception as error:  # the client's own errors, its HTTP library's, the system's
        raise RegistryError(f"{url}: {first_line(error)}") from error
