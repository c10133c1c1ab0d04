"""How the broker and we prove who we are: the files that the settings name.

They are read when a connection is made, so that they can be renewed while the service runs.
"""

from __future__ import annotations

import ssl
import tomllib
from pathlib import Path

from orchestrator.errors import InvalidSettings
from orchestrator.settings import TlsSettings


def read_credentials(path: Path) -> tuple[str, str]:
    """Return username and password.

    Raises
    ------
    InvalidSettings
        When the file can't be read, is open to everybody, or doesn't hold the two; its content isn't repeated.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise InvalidSettings(f"{path}: everybody may read or change it", remedy=f"chmod 600 {path}")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: can't be read: {error}", remedy="check path, owner and mode") from error
    except tomllib.TOMLDecodeError:
        found = {}  # the parser's message may show the password
    username, password = found.get("username"), found.get("password")
    if not _is_word(username) or not _is_word(password):
        raise InvalidSettings(
            f"{path}: doesn't hold username and password", remedy='two lines of TOML: username = "…", password = "…"'
        )
    return str(username), str(password)


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the context for these settings.

    Raises
    ------
    InvalidSettings
        Naming the file that can't be used.
    """
    context = ssl.create_default_context()
    try:
        if tls.ca_file is not None:
            context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.certificate_file is not None:
            context.load_cert_chain(tls.certificate_file, tls.key_file, password="")
    except OSError as error:
        files = ", ".join(str(path) for path in (tls.ca_file, tls.certificate_file, tls.key_file) if path)
        raise InvalidSettings(
            f"TLS files {files}: {error}", remedy="give PEM files that exist, and a key without a pass phrase"
        ) from error
    return context


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()
