# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of the Hub by huggingface_hub: its cache, progress, resumed downloads; errors say what would fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/|hf://)?"
    r"(?P<repository>[\w-][\w.-]*/[\w.-]+)/(?:(?:blob|resolve)/(?P<revision>[^/]+)/)?(?P<name>[^?#]+)(?:\?.*)?"
)


@dataclass(frozen=True)
class Hub:
    """How the Hub is asked.

    Args:
        revision (`str`, *optional*): branch, tag or commit; the main branch by default.
        token (`str` or `bool`, *optional*): for repositories that are not public; by default the one that the user
            logged in with.
        cache_dir (`str` or `Path`, *optional*): huggingface_hub's cache; the user's by default.
        local_files_only (`bool`, *optional*, defaults to `False`): whether nothing but the cache is asked.
        force_download (`bool`, *optional*, defaults to `False`): whether the cache is not asked.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def file(self, repository: str, name: str) -> Path:
        """Returns the local path of a repository's file, downloaded if the cache does not have it.

        Raises:
            OSError: repository, revision or file are not there (`FileNotFoundError`, which names what is), access is
                not granted, or there is no network.
        """
        with self._errors(repository, name):
            path = hf_hub_download(
                repository,
                name,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
                force_download=self.force_download,
            )
        return Path(path)

    def names(self, repository: str) -> list[str]:
        """Returns the names of a repository's files; without a network of those in the cache.

        Raises:
            OSError: see [`~Hub.file`].
        """
        if self.local_files_only or constants.HF_HUB_OFFLINE:
            return self._cached_names(repository)
        with self._errors(repository, None):
            try:
                return HfApi().list_repo_files(repository, revision=self.revision, token=self.token)
            except HfHubHTTPError:
                raise
            except HTTPError as error:  # no answer at all
                cached = self._cached_names(repository)
                if not cached:
                    raise LocalEntryNotFoundError("no network") from error
                return cached

    def _cached_names(self, repository: str) -> list[str]:
        try:
            cached = scan_cache_dir(self.cache_dir).repos
        except CacheNotFound:
            return []
        revisions = [each for repo in cached if repo.repo_id == repository for each in repo.revisions]
        wanted = self.revision or "main"
        chosen = [each for each in revisions if wanted in each.refs or each.commit_hash == wanted]
        return sorted(
            file.file_path.relative_to(each.snapshot_path).as_posix() for each in chosen for file in each.files
        )

    @contextmanager
    def _errors(self, repository: str, name: str | None) -> Iterator[None]:
        where = f"{repository!r}" + (f" (revision {self.revision!r})" if self.revision else "")
        what = where if name is None else f"{name!r} of {where}"
        try:
            yield
        except GatedRepoError as error:
            raise PermissionError(f"{what}: access has to be asked for on the Hub, and a `token` passed") from error
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"there is no repository {where} on the Hub, or it is private and `token` does not open it"
            ) from error
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"{repository!r} has no revision {self.revision!r}") from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            cached = self._cached_names(repository)
            there = f"; of that repository there are {', '.join(cached)}" if cached else ""
            raise FileNotFoundError(
                f"{what} is not in the cache, and the Hub cannot be asked (no network, or offline mode){there}"
            ) from error
        except EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{where} has no file {name!r}; it has {', '.join(self.names(repository))}"
            ) from error
        except HFValidationError as error:
            raise ValueError(f"{repository!r} is no name of a repository on the Hub (owner/name)") from error
        except HfHubHTTPError as error:
            raise OSError(f"{what} could not be downloaded: {error}") from error


def is_repository(name: str) -> bool:
    """Whether `name` looks like a repository's (`owner/name`)."""
    return _REPOSITORY.fullmatch(name) is not None


def split_address(address: str) -> tuple[str, str | None, str] | None:
    """Splits the address of a file on the Hub into repository, revision (if it says one) and file.

    Args:
        address (`str`): `owner/name/path/file.pt`, `https://huggingface.co/owner/name/blob/main/path/file.pt` and the
            like.
    """
    match = _ADDRESS.fullmatch(address)
    return match and (match["repository"], match["revision"], match["name"])
