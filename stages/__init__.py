"""The six stages, each run by DVC as `python -m stages.NAME`."""

import gc
import os
import sys
from pathlib import Path

# What a stage imports stays: to look for garbage among it takes a sixth of the start. The work turns it on.
if sys.argv[0] == "-m":
    gc.disable()

# A package that happens to be installed must not change how params are read; and to look for one takes time.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# Idle threads of torch's OpenMP give their core away soon instead of spinning: no slower on a quiet machine,
# and 1.6 times as fast beside one other busy process on two cores. It is read when the library is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A temporary or queued experiment runs in its own copy of the project: it must use that copy's code,
# not the one that happens to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
