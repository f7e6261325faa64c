"""The revision of the code that runs, for bundles and reports."""

from __future__ import annotations

import subprocess
from pathlib import Path


def code_revision() -> str | None:
    """Revision of this checkout; None for an installed wheel, also inside somebody else's repository."""
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    ours = done.returncode == 0 and len(lines) == 2 and Path(lines[0]).resolve() / "platform" / "rayrank" == package
    return lines[1] if ours else None
