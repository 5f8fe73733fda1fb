"""Chat templates, rendered in a process of their own: a checkpoint may bring any program in Jinja's language.

Nothing that runs inside of Python bounds such a program: ``"a".ljust(10**10)``, an integer that squares itself or two
lists that hold each other forty times over are one operation each. A process is bounded in time and memory whatever it
does. It is started with the first conversation, takes some 60 ms for that, is kept for the next ones, and ends with
this one.

The limit of time (`SECONDS`, and `WAIT` with the start of the process) holds on every system. The limit of memory
(`MEMORY`) holds on Linux alone: macOS and Windows have no limit of a process's address space, so there a template is
bounded by its time only.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.spawn import get_executable
from pathlib import Path
from threading import Lock, Timer
from typing import Any

MEMORY = 400 * 2**20  # bytes of the address space
SECONDS = 1.2  # for one conversation, which takes milliseconds
CHARACTERS = 2**24
# With the start of the process, on a busy machine; the only limit where processes have no timer (Windows).
WAIT = 10.0 if hasattr(signal, "setitimer") else 2.0

LIMITS = f"within {SECONDS} s and {MEMORY // 2**20} MiB"

# Isolated (-I: no settings of the user's, -S: no site), with the folders of the two libraries behind its own.
_BEGIN = (
    "import runpy, sys; sys.path += sys.argv.pop(1).split('\\n'); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)


class TemplateError(Exception):
    """A template refuses what it is given, or does not run."""


class TemplateLimitError(TemplateError):
    """A template takes more than the limits allow."""


class Renderer:
    """One template process and the exchange with it. Threads wait for each other."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text that a template makes of its variables, which are plain data: what JSON holds.

        Raises:
            TemplateError: the template does not run, or refuses the variables.
            TemplateLimitError: it takes more time, memory or text than is allowed.
        """
        job = json.dumps({"template": template, "variables": variables}).encode() + b"\n"
        with self._lock:
            reply = self._asked(job)
        if "text" in reply:
            return str(reply["text"])
        raise TemplateLimitError(reply["limit"]) if "limit" in reply else TemplateError(reply["error"])

    def close(self) -> int:
        """End the process, if there is one; what it returned."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.kill()
        process.communicate()
        return process.returncode

    def _asked(self, job: bytes) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = _started()
        process = self._process
        timer = Timer(WAIT, process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = _exchanged(process, job)
        except BaseException:  # an interruption: its answer would be taken for that to the next question
            self.close()
            raise
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            return {"limit": _ended(self.close())}
        reply: dict[str, Any] = json.loads(line)
        if "limit" in reply:
            self.close()  # what is left of its memory is not worth asking
        return reply


def _started() -> subprocess.Popen[bytes]:
    found = (find_spec(name) for name in ("jinja2", "markupsafe"))
    libraries = "\n".join({str(Path(str(one.origin)).parent.parent) for one in found if one is not None})
    program = str(Path(__file__).with_name("template_process.py"))
    limits = [str(MEMORY), str(SECONDS), str(CHARACTERS)]
    return subprocess.Popen(
        [os.fsdecode(get_executable()), "-I", "-S", "-c", _BEGIN, libraries, program, *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _exchanged(process: subprocess.Popen[bytes], job: bytes) -> bytes:
    """The answer; something without a newline at its end where the process ended instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job)
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return b""


def _ended(code: int) -> str:
    """Why a process ended, by what it returned."""
    if code == -getattr(signal, "SIGALRM", 0):
        return f"it takes more than {SECONDS} s"
    if code == -getattr(signal, "SIGKILL", 0) or os.name == "nt":
        return f"it gives no answer for {WAIT:.0f} s"
    return f"its process ended with code {code}"


renderer = Renderer()
atexit.register(renderer.close)
if hasattr(os, "register_at_fork"):  # two processes must not share one, and another thread may have held the lock
    os.register_at_fork(after_in_child=renderer.__init__)  # type: ignore[misc]
