"""Names for DICOM cases that do not tell who the patient is: a keyed hash of the series UID.

The key is a secret of the user, made on first use in ``$XDG_CONFIG_HOME/pneumoscope/salt`` (``~/.config`` when that is
not set), readable by the user alone. With the key, one series always gets one name; without it, nobody can find out
which series a name stands for, even with a list of all UIDs. ``PNEUMOSCOPE_SALT`` overrides the file, so that
machines can share names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

SALT_VARIABLE = "PNEUMOSCOPE_SALT"
_NAME_DIGITS = 12


def case_name(series_uid: str) -> str:
    """``ct-`` and 12 hex digits of HMAC-SHA256(secret, UID): a safe file name, the same on every run."""
    digest = hmac.new(_salt(), series_uid.encode(), hashlib.sha256).hexdigest()
    return f"ct-{digest[:_NAME_DIGITS]}"


def uid_key() -> bytes:
    """The key by which UIDs of derived objects are made; tells nothing about the secret."""
    return hmac.new(_salt(), b"pneumoscope derived UIDs", hashlib.sha256).digest()


def salt_path() -> Path:
    """Where the user's secret lies."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "pneumoscope" / "salt"


def has_lasting_salt() -> bool:
    """Whether names will be the same in the next process; makes the secret when it is missing."""
    _salt()
    return bool(os.environ.get(SALT_VARIABLE)) or _stored() is not None


def _salt() -> bytes:
    given = os.environ.get(SALT_VARIABLE)
    if given:
        return given.encode()
    return _stored() or _made() or _passing()


def _stored() -> bytes | None:
    try:
        return salt_path().read_bytes().strip() or None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


def _made() -> bytes | None:
    """A new secret, put in place by a link so that two first runs agree on one; None when it cannot be stored."""
    try:
        path = salt_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".salt-{os.getpid()}-{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secrets.token_hex(32).encode())
            os.fsync(handle)
            os.close(handle)
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        return _stored()
    except (OSError, RuntimeError):
        return None


@lru_cache(maxsize=1)
def _passing() -> bytes:
    return secrets.token_bytes(32)
