"""Templates that take all memory, all time, or end their process: each ends in an error, and the next one runs."""

import json
import os
import subprocess
import sys
import threading
import warnings

import pytest

from limelight.generation.templates import (
    MEMORY,
    SECONDS,
    WAIT,
    Renderer,
    TemplateError,
    TemplateLimitError,
    renderer,
)

TIMES = "{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"


def grown(begin, step):
    """A value that grows with every turn of a loop."""
    return f"{{% set ns = namespace(s={begin}) %}}" + TIMES.replace("STEP", step)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LONG = "{{ 'a'.ljust(100000000) }}"  # fits, but is no conversation
BOMBS = [
    *(f"{{{{ 'a'.{method}(10000000000) }}}}" for method in ("ljust", "rjust", "center", "zfill")),
    "{{ '\t'.expandtabs(2000000000) }}",
    "{{ 'a'.encode().ljust(10000000000) }}",
    "{{ (1).to_bytes(10000000000) }}",
    "{{ '%10000000000d' % 5 }}",
    "{{ '%.2000000000f' % 5.0 }}",
    "{{ '%*d' % (2000000000, 5) }}",
    "{{ '{:10000000000}'.format(5) }}",
    "{{ '{:{}}'.format(5, 10000000000) }}",
    "{{ '{x:10000000000}'.format_map({'x': 5}) }}",
    "{{ '%10000000000d' | format(5) }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a\nb' | indent(10000000000) }}",
    "{{ [1, 2] | tojson(indent=1000000000) }}",
    "{{ [1] | batch(1000000000, 2) | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ 'a' * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ (1,) * 10000000000 }}",
    "{{ 2 ** 100000000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ lipsum(n=100000000) }}",
    "{{ range(99999) | map('string') | join('a' * 99999) }}",
    grown("'ab'", "ns.s ~ ns.s"),
    grown("'ab'", "ns.s + ns.s"),
    grown("'ab'", "ns.s * 2"),
    grown("'aa'", "ns.s.replace('a', 'aa')"),
    grown("'aa'", "ns.s | replace('a', 'aa')"),
    grown("'ab'", "ns.s.join([ns.s, ns.s, ns.s])"),
    grown("'ab'", "[ns.s, ns.s] | join(ns.s)"),
    grown("'ab'", "ns.s.translate({97: ns.s})"),
    grown("'ab'", "'{0}{0}'.format(ns.s)"),
    grown("'ab'", "'%s%s' % (ns.s, ns.s)"),
    grown("[1]", "ns.s + ns.s"),
    grown("[1]", "[ns.s, ns.s]"),
    grown("[1]", "[ns.s, ns.s] | sum(start=[])"),
    grown("{'a': 1}", "{'a': ns.s, 'b': ns.s}") + "{{ ns.s | tojson }}",
    grown("[1]", "(ns.s, ns.s)") + "{{ {ns.s: 1} }}",
    "{% set a = namespace(s=[1]) %}{% set b = namespace(s=[1]) %}"
    "{% for i in range(60) %}{% set a.s = [a.s, a.s] %}{% set b.s = [b.s, b.s] %}{% endfor %}{{ a.s == b.s }}",
    grown("3", "ns.s * ns.s"),
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = x %}{% endfor %}",
    ENDLESS,
    "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
    "{{ ('a' * 100000) | urlize }}{{ ('a.' * 3000000) | urlize }}{{ ('www.' * 3000000) | urlize }}",
    "{{ ('<' * 3000000) | striptags }}{{ (('<a ' * 999999) ~ 'b') | striptags | wordcount }}"
    "{% for i in range(99999) %}{{ ('<!-- ' * 99999) | striptags }}{% endfor %}",
    LONG,
]
DEEP = [
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "not " * 100_000 + "1 }}",
    "{{ 1" + " + 1" * 100_000 + " }}",
    "{{ a" + ".a" * 100_000 + " }}",
    "{{ a" + "|lower" * 100_000 + " }}",
    "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "{% for i in [1] %}" * 25 + "{% endfor %}" * 25,
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
]

MEASURED = """
import json, resource, sys, time
from limelight.generation.templates import TemplateError, renderer
renderer.render("begin", {})
before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
for template in json.load(sys.stdin):
    begin = time.perf_counter()
    try:
        outcome = len(renderer.render(template, {"messages": []}))
    except TemplateError as error:
        outcome = f"{type(error).__name__}: {error}"
    found.append((template[:60], time.perf_counter() - begin, outcome))
    assert renderer.render("{{ x }} again", {"x": 1}) == "1 again"
renderer.close()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([found, after - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def measured(templates):
    """What each comes to; and the most memory, in MiB, that it takes here and in its own process."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED], input=json.dumps(templates), capture_output=True, text=True, check=True
    )
    found, here, there = json.loads(run.stdout)
    return found, here / 2**10, there / 2**10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit the time alone, and measure in other units")
@pytest.mark.parametrize("templates", [BOMBS, DEEP], ids=["bombs", "deep"])
def test_whatever_a_template_does_ends_soon_and_takes_little(templates):
    found, here, there = measured(templates)
    assert len(found) == len(templates)
    harmless = [one for one in found if not isinstance(one[2], str) and one[2] > 10**6]
    assert not harmless
    if templates is BOMBS:
        survived = [one for one in found if not str(one[2]).startswith(("TemplateLimitError", "TemplateError"))]
        assert not survived
    slow = [one for one in found if one[1] > 2]
    assert not slow
    assert there < 500
    assert here < 100


def test_why_a_template_was_ended():
    with pytest.raises(TemplateLimitError, match=f"it takes more than {SECONDS} s"):
        renderer.render(ENDLESS, {})
    with pytest.raises(TemplateLimitError, match="it takes more memory"):
        renderer.render("{{ 'a' * 10000000000 }}", {})
    with pytest.raises(TemplateLimitError, match="it writes 100,000,000 characters, more than 16,777,216"):
        renderer.render(LONG, {})
    with pytest.raises(TemplateError, match="deep"):
        renderer.render(DEEP[0], {})
    assert MEMORY < 500 * 10**6
    assert SECONDS < 2 < WAIT


def test_a_process_that_died_is_replaced():
    one = Renderer()
    assert one.render("a", {}) == "a"
    process = one._process
    process.kill()
    process.wait()
    assert one.render("b", {}) == "b"
    assert one._process.pid != process.pid
    one.close()
    one.close()


def test_threads_get_their_own_answers():
    found = {}

    def ask(number):
        found[number] = [renderer.render("{{ n }} of {{ m }}", {"n": number, "m": turn}) for turn in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [f"{number} of {turn}" for turn in range(20)] for number in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_asks_a_process_of_its_own():
    assert renderer.render("before", {}) == "before"
    renderer._lock.acquire()  # as another thread might, at that moment
    try:
        with warnings.catch_warnings():  # that threads run beside
            warnings.simplefilter("ignore")
            child = os.fork()
        if not child:
            right = renderer.render("{{ 1 + 1 }}", {}) == "2"
            renderer.close()
            os._exit(0 if right else 1)
    finally:
        renderer._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert renderer.render("after", {}) == "after"


def test_an_interruption_leaves_no_answer_behind(monkeypatch):
    one = Renderer()
    one.render("a", {})
    real = one._process.stdout

    class Interrupted:
        def __getattr__(self, name):
            return getattr(real, name)

        def readline(self):
            raise KeyboardInterrupt

    one._process.stdout = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        one.render("b", {})
    assert one.render("c", {}) == "c"
    one.close()
