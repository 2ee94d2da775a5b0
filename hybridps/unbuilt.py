"""What a checkout says in which the engine was not compiled: one sentence with the remedy.

Needs nothing but the standard library, since nothing else can be imported then.
"""

import sys
from pathlib import Path
from typing import NoReturn


def explain(cause: ImportError) -> NoReturn:
    """Raises ImportError with the remedy; a program of ours ends with that one line instead."""
    text = (
        f"hybridps: the engine is not built in {Path(__file__).parent.parent} ({cause});"
        " run `make setup` there and use its .venv, or `pip install .`"
    )
    # While `python -m hybridps.server` looks the module up its name is not known yet.
    if sys.argv and (sys.argv[0] == "-m" or Path(sys.argv[0]).name == "hybridps"):
        raise SystemExit(text) from None
    raise ImportError(text, name="hybridps._core") from cause
