"""Puts JSON-LD contexts into roc-validator's cache of web pages, so that it needs no network.

python keep_contexts.py CACHE URL FILE [URL FILE]…    (in the validator's environment)
"""

import io
import sys
from pathlib import Path

from requests import Request, Response
from requests_cache import CachedSession
from urllib3 import HTTPResponse


def page(url: str, content: bytes) -> Response:
    """Return a web page as if it had been fetched."""
    found = Response()
    found.status_code = 200
    found.url = url
    found.headers["Content-Type"] = "application/ld+json"
    found.request = Request("GET", url).prepare()
    found.raw = HTTPResponse(io.BytesIO(content), headers=found.headers, status=200, preload_content=False)
    found._content = content
    return found


cache, *pages = sys.argv[1:]
with CachedSession(cache, backend="sqlite") as session:
    for url, file in zip(pages[::2], pages[1::2], strict=True):
        session.cache.save_response(page(url, Path(file).read_bytes()))
