"""The files of the page, read once: a request can name these and no other file."""

from functools import cache
from importlib import resources

from attrs import frozen

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@frozen
class Asset:
    """A file of the page."""

    content: bytes
    content_type: str


@cache
def assets() -> dict[str, Asset]:
    """Return the files by their path in a URL; the page itself is at "/"."""
    found = {}
    for file in (resources.files(__package__) / "static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = Asset(file.read_bytes(), _TYPES[suffix])
    return found
