"""Keep a store in an object store through fsspec, such as S3.

A write that gets no answer may have happened. The client of the store sends it again, so every
write here may come twice: see ``Objects.create_record`` for what follows from that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any

from headkit.adapters.errors import DependencyMissing, RegistryError, StoreError, first_line

from .storage import ObjectInfo, size_limit

logger = logging.getLogger("headkit")


class ObjectStorage:
    """An object store through fsspec, such as ``s3://``, ``gs://`` or ``az://``.

    https://filesystem-spec.readthedocs.io. ``create`` is a conditional write if fsspec's package
    for the store supports it, as those for S3, Google Cloud Storage and Azure do.

    Attributes:
        deadlines: Seconds in which the store must answer: for a record or a tag, and for all else.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            options = _OPTIONS.get(url.partition("://")[0], {})
            self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            scheme = url.partition("://")[0]
            package = _PACKAGES.get(scheme)
            if package is None:
                raise DependencyMissing(
                    f"a store at {scheme}:// needs a package that is missing: {first_line(error)}"
                ) from error
            raise DependencyMissing.for_feature(f"a store at {scheme}://", package) from error
        except ValueError as error:
            raise RegistryError(f"{url} cannot hold a store: {first_line(error)}") from error
        self.deadlines: tuple[int, int] = DEADLINE, SLOW_DEADLINE
        self.url = self.place = url.rstrip("/")
        self.root = self.root.rstrip("/")
        # The other clients are not tested with a part that ends behind the object's end.
        self._reads_parts = url.partition("://")[0] in ("s3", "s3a", "memory")
        if url.partition("://")[0] not in (*_PACKAGES, "memory"):
            logger.warning(
                "%s: headkit does not know whether conditional writes work there: let only one "
                "publisher write at a time",
                self.url,
            )

    def read(self, key: str) -> bytes:
        """See ``Storage``."""
        limit = size_limit(key)
        with self._translate_errors(key):
            if limit is None:
                return bytes(self._call("cat_file", self._path(key)))
            part = {"start": 0, "end": limit + 1} if self._reads_parts else {}
            content = bytes(self._call("cat_file", self._path(key), **part))
            if len(content) > limit:
                raise StoreError(f"{self.url}/{key} has more than {limit:,} bytes")
            return content

    def create(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            try:
                self._call("pipe_file", self._path(key), content, mode="create")
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                raise StoreError(f"{self.url}: there is no such bucket or container") from error
            except Exception as error:
                if _is_conflict(error):
                    raise FileExistsError(key) from error
                raise

    def replace(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            self._call("pipe_file", self._path(key), content)

    def delete(self, key: str) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            self._call("info", self._path(key))  # S3 reports no error if the object does not exist
            self._call("rm_file", self._path(key))

    def refresh(self, key: str) -> None:
        """Write the object again: object stores cannot set the time of the last write."""
        self.replace(key, self.read(key))

    def stat(self, key: str) -> ObjectInfo:
        """See ``Storage``."""
        with self._translate_errors(key):
            return self._object_info(self._call("info", self._path(key)))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ``Storage``."""
        with self._translate_errors(prefix), suppress(FileNotFoundError):
            details = self._call("find", f"{self.root}/{prefix}".rstrip("/"), detail=True)
            yield from map(self._object_info, details.values())

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``."""
        with self._translate_errors(prefix), suppress(FileNotFoundError):
            details = self._call("ls", f"{self.root}/{prefix}".rstrip("/"), detail=True)
            names = [str(one["name"]).rstrip("/") for one in details if one["type"] == "directory"]
            return [name.rpartition("/")[2] for name in names]
        return []

    def _object_info(self, detail: dict[str, Any]) -> ObjectInfo:
        key = str(detail["name"]).removeprefix(self.root).lstrip("/")
        times = (detail.get(name) for name in ("LastModified", "mtime", "last_modified", "created"))
        when = next((one for one in times if one is not None), time.time())
        modified = when.timestamp() if hasattr(when, "timestamp") else float(when)
        return ObjectInfo(key, int(detail["size"] or 0), modified)

    def _path(self, key: str) -> str:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise RegistryError(f"{key!r} is not a valid key of a store")
        return f"{self.root}/{key}"

    def _call(self, name: str, path: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system, which must answer in time."""
        from fsspec.asyn import AsyncFileSystem, sync

        if not isinstance(self.files, AsyncFileSystem):
            return getattr(self.files, name)(path, *arguments, **options)
        # https://filesystem-spec.readthedocs.io/en/latest/async.html
        method = getattr(self.files, f"_{name}")
        return sync(
            self.files.loop, method, path, *arguments, timeout=self._deadline(path), **options
        )

    def _deadline(self, key: str) -> int:
        """Return the seconds in which the store must answer."""
        small, other = self.deadlines
        return small if key.endswith(_SMALL) else other

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, FileNotFoundError, RegistryError):
            raise
        except TimeoutError as error:
            seconds = self._deadline(key)
            raise StoreError(
                f"{self.url}/{key}: the store did not answer in {seconds} s: try again later"
            ) from error
        except Exception as error:  # each package for fsspec raises the errors of its own client
            raise StoreError(f"{self.url}/{key}: {first_line(error)}") from error


DEADLINE, SLOW_DEADLINE = 60, 600
"""Seconds in which an object store must answer: for a record or a tag, and for all else. Its client
alone would try again for up to 25 minutes."""
_SMALL = (".json", ".tag", ".yanked")

_OPTIONS: dict[str, dict[str, Any]] = {
    scheme: {"config_kwargs": {"max_pool_connections": 100}} for scheme in ("s3", "s3a")
}
"""Options of the packages. With 10 connections, as many reads that hang would stop all others."""
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}


_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


def _is_conflict(error: BaseException) -> bool:
    """Return True if a store refused a conditional write because the object exists.

    fsspec's packages raise ``FileExistsError`` for most of these refusals. For the others they pass
    on an error of the store's client, itself or as the cause: that of botocore has the code of S3,
    those of Google Cloud Storage and Azure have the status of HTTP.
    """
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping) and response.get("Error", {}).get("Code") in _CONFLICTS:
            return True
        if HTTPStatus.PRECONDITION_FAILED in (
            getattr(cause, "code", None),
            getattr(cause, "status_code", None),
        ):
            return True
        cause = cause.__cause__
    return False
