"""Where caches lie that are trusted when they are found: a folder that nobody else can write into."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from rayrank.config import ConfigError


def private_folder(setting: str) -> Path:
    """The folder of this user below that of temporary files, made where it is absent: what lies in it is trusted.

    ``setting`` names another place for what is to lie there, for errors.

    Raises:
        ConfigError: somebody else made it, or may write into it.
    """
    folder = Path(tempfile.gettempdir()) / f"rayrank-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _not_private(setting, folder, f"cannot be made ({type(error).__name__})") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise _not_private(setting, folder, "belongs to somebody else")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise _not_private(setting, folder, f"is open to others (mode {stat.S_IMODE(found.st_mode):o})")
    return folder


def _not_private(setting: str, folder: Path, why: str) -> ConfigError:
    rule = f"the folder of caches {why}; what lies there cannot be trusted"
    return ConfigError(setting, str(folder), rule, f"remove the folder, or name another place: {setting}=PATH")
