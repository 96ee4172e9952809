"""Heads on the Hugging Face Hub: ``hf://user/repo``, or ``hf://user/repo/name`` among several."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from headkit.adapters.errors import HeadFormatError, RegistryError, first_line
from headkit.adapters.files import write_atomically
from headkit.adapters.heads.head import Head
from headkit.registry.resolve import head_file
from headkit.registry.store.reference import check_name

from .card import CARD_FILE, CONFIG_FILE, GENERATED, HEAD_FILE, card, config_of, config_text

logger = logging.getLogger("headkit")

SCHEME = "hf://"
ATTEMPTS = 10
"""At a commit on top of the newest one, while others push."""
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class HubPlace:
    """Where a head lies on the Hub.

    Attributes:
        repo: ``user/name``.
        folder: of the head in the repository; empty for the one at its top.
        revision: branch, tag or commit; empty for the default branch.
    """

    repo: str
    folder: str = ""
    revision: str = ""

    @classmethod
    def parse(cls, url: str) -> HubPlace:
        """Read ``hf://user/repo[@revision][/name]``.

        Raises:
            RegistryError: it is of another form.
        """
        parts = url.removeprefix(SCHEME).split("/")
        if not url.startswith(SCHEME) or len(parts) not in (2, 3):
            raise RegistryError(f"{url!r} is no hf://user/repo[@revision] or hf://user/repo/name")
        name, _, revision = parts[1].partition("@")
        repo = f"{parts[0]}/{name}"
        if not _REPO.fullmatch(repo):
            raise RegistryError(f"{repo!r} is no repository of the Hub")
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
    """Put a head into a repository of the Hub, with its configuration and a model card.

    All of it is one commit, on top of the one that it was made from: pushing at once loses
    nothing. The card describes all heads of the repository; a README that headkit did not write
    stays as it is.

    Args:
        path: head file, or a reference to a store.
        url: ``hf://user/repo`` or ``hf://user/repo/name``; a new repository is made.
        private: whether a new repository is seen by its owner alone; the account's default without.
        message: of the commit.
        token: for the Hub; the one that ``hf auth login`` stored, or ``$HF_TOKEN``, without it.

    Returns:
        URL of the commit.

    Raises:
        HeadFormatError: the file is no head.
        RegistryError: the Hub cannot be reached or refuses.
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
            found = api.model_info(place.repo, revision=place.revision or None)
            names = [one.rfilename for one in found.siblings or ()]
            files = own | _card_files(api, place, found.sha, names, config_of(head))
            done = _commit(api, place, found.sha, files, message)
            if done:
                return done
    raise RegistryError(f"{url}: others were faster {ATTEMPTS} times: try again")


def pull(url: str, out: str | Path | None = None, *, token: str | None = None) -> Path:
    """Fetch a head from the Hub.

    Args:
        url: ``hf://user/repo[@revision]`` or ``hf://user/repo[@revision]/name``.
        out: where to write it; it stays in the Hub's own cache without.
        token: see ``push``.

    Raises:
        HeadFormatError: what lies there is no head.
        RegistryError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    place = HubPlace.parse(url)
    with _translate_errors(url):
        found = hf_hub_download(
            place.repo, place.path(HEAD_FILE), revision=place.revision or None, token=token
        )
    Head.load(found)
    return Path(found) if out is None else write_atomically(out, Path(found).read_bytes())


def _card_files(
    api: Any, place: HubPlace, commit: str | None, names: Sequence[str], config: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the card of a repository with one more head; nothing where the README is not ours."""

    def text_of(name: str) -> str:
        found = api.hf_hub_download(place.repo, name, revision=commit)
        return Path(found).read_text(encoding="utf-8")

    if CARD_FILE in names and GENERATED not in text_of(CARD_FILE):
        logger.warning("%s: headkit did not write its %s, which stays", place.repo, CARD_FILE)
        return {}
    configs = {place.folder: config}
    for name in names:
        folder, _, file = name.rpartition("/")
        if file == CONFIG_FILE and "/" not in folder and folder != place.folder:
            other = json.loads(text_of(name))
            if "headkit" in other:
                configs[folder] = other
    return {CARD_FILE: card(place.repo, configs).encode()}


def _commit(
    api: Any, place: HubPlace, parent: str | None, files: Mapping[str, bytes], message: str
) -> str | None:
    """Return the URL of a commit on top of another; none where that is not the newest any more."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    try:
        done = api.create_commit(
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
    return str(done.commit_url)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Have what the Hub's client raises become one of our errors."""
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
        raise RegistryError(f"{url}: the Hub cannot be reached, and it is not cached") from error
    except GatedRepoError as error:
        raise RegistryError(f"{url}: its owner has to grant you access first") from error
    except RepositoryNotFoundError as error:
        raise RegistryError(
            f"{url}: there is no such repository, or it is private and needs `hf auth login`"
        ) from error
    except EntryNotFoundError as error:
        raise RegistryError(f"{url}: the repository has no {HEAD_FILE} there") from error
    except Exception as error:  # its own, those of its HTTP client, and of the system
        raise RegistryError(f"{url}: {first_line(error)}") from error
