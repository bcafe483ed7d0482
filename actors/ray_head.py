"""The process that starts a Ray of this machine for one command, and ends it with that command.

It has a session of its own, so a signal to the process group of the command reaches neither it nor Ray nor an actor.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray

from actors.local_ray import kill_session
from curriculum.errors import one_line

_ray: Any = ray  # where its declarations have no complete types


def main() -> None:
    """Start Ray with the arguments in argv[1], write one JSON line, and end Ray and its token with standard input.

    The line holds `address` and `dashboard` (empty without one), or `error`. Standard input is a pipe of the command:
    it is closed when the command ends, however it ends.
    """
    try:
        _serve(json.loads(sys.argv[1]))
    finally:
        _ray.shutdown()
        Path(os.environ["RAY_AUTH_TOKEN_PATH"]).unlink(missing_ok=True)
        kill_session(os.getpid())


def _serve(arguments: dict[str, Any]) -> None:
    try:
        context = _ray.init(address="local", log_to_driver=False, logging_level="ERROR", **arguments)
    except Exception as error:
        _write(error=one_line(error))
        return
    _write(address=context.address_info["gcs_address"], dashboard=context.dashboard_url)
    sys.stdin.read()


def _write(**fields: str) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
