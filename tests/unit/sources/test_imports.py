from __future__ import annotations

import subprocess
import sys


def test_prepare_workers_start_without_torch() -> None:
    code = "import sys, rayrank.sources.tasks; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
