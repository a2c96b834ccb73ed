"""Which blob store this house has begun, noted outside of it: an empty mount point must not become a second store.

`data_dir/blobs.mark` holds the `blobs_url` of the store that was begun, or was found there, when the gateway last started with a
new one (`begin_blobs`).  While the mark knows a folder and the folder is empty, `FileBlobStore` refuses every put: a door answers
451, and needs no database to know it.  A person who has lost that folder for good deletes the mark; the next put begins anew.
Limits: a mount that is missing at the very first start cannot be told from a folder to be made; each host has a mark of its own.
"""

from __future__ import annotations

from pathlib import Path

from gateway.store.blob_collector import names_any
from gateway.store.blobs import BlobStore
from gateway.store.database import Database
from gateway.whole_file import write_whole


class BlobMark:
    """The file; several processes of a host share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def knows(self, url: str) -> bool:
        """Whether the store at this URL was begun; raises OSError where that cannot be read."""
        try:
            return self._path.read_bytes() == _line(url)
        except FileNotFoundError:
            return False

    def note(self, url: str) -> None:
        """From here on the store at this URL is known; raises OSError."""
        write_whole(self._path, _line(url))


async def begin_blobs(blobs: BlobStore, mark: BlobMark, *, url: str, database: Database) -> None:
    """Begins a store that is new, and notes that it is; raises StoreUnavailable or OSError.

    One that is not there while the ledger names blobs is not begun: they lie elsewhere, or it is not mounted.
    """
    if mark.knows(url):
        return
    if not await blobs.is_there():
        if await database.read(names_any):
            return
        await blobs.begin()
    mark.note(url)


def _line(url: str) -> bytes:
    return f"{url}\n".encode()
