"""The process in which chat templates are rendered. `limelight.generation.templates` runs this file by its path.

It imports nothing of Limelight: it starts in a twentieth of a second, and holds nothing that a template could reach.
One line of JSON is a job, ``{"template": ..., "variables": ...}``; one line answers it, ``{"text": ...}`` or
``{"error": ...}``. A job that takes too long ends the process, one that takes too much memory raises in it.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` around what the model wrote itself; it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """A block with a scope of its own, as ``transformers`` has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class PlainNamespace(Namespace):
    """Jinja's ``namespace``, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may write namespace(self=...)
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            PlainNamespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        PlainNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name!r:.80}")


class PlainDict:
    """``dict`` as templates may call it; no attribute of the class itself is in reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """A new dict with one value for all keys."""
        return dict.fromkeys(keys, value)


def raise_exception(message: str) -> NoReturn:
    """Raise an error; chat templates call this for messages that they do not support."""
    raise TemplateError(message)


def strftime_now(format: str) -> str:
    """The current time, in the ``format`` that a template gives."""
    return datetime.now().strftime(format)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON, without Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    """A template with the filters, functions and tags that ``transformers`` gives it, in Jinja's immutable sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return environment.from_string(template)


def answer(job: dict[str, Any], most: int) -> dict[str, str]:
    """Render the template of one job; a text of more than ``most`` characters is an error."""
    try:
        text = compiled(job["template"]).render(**job["variables"])
        if len(text) > most:
            return {"limit": f"it writes {len(text):,} characters, more than {most:,}"}
        return {"text": text}
    except MemoryError:
        return {"limit": "it takes more memory"}
    except RecursionError:
        return {"error": "it calls itself, or is nested, too deep"}
    except TemplateError as error:
        return {"error": f"{error!s:.500}"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error!s:.500}"}


def main(memory: int, seconds: float, most: int) -> None:
    """Answer jobs until there are no more, within ``memory`` bytes and, each of them, ``seconds``."""
    limited = hasattr(signal, "setitimer")  # not on Windows, where only the asking process watches the clock
    if limited:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        within = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        with suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (within, hard))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also in the middle of one operation
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the calling process
    for line in sys.stdin.buffer:
        job = json.loads(line)
        if limited:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        reply = answer(job, most)
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
