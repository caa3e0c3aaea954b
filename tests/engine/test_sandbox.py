"""A hostile chat template is stopped by an error, in time and in memory; an honest one has what it needs."""

from __future__ import annotations

import threading
import time
import tracemalloc
from datetime import datetime
from typing import Any

import pytest

from fluvial.adapters.errors import FluvialError, IntegrityError, UnsupportedError, UsageError
from fluvial.engine.sandbox import compile_template, run_template
from fluvial.engine.sandbox_budget import Limits

QUICK = Limits(seconds=0.2)
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"


def run(source: str, limits: Limits = QUICK, **variables: Any) -> str:
    return run_template(compile_template(source, limits), variables, limits)


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


ESCAPES = [
    "{{ ''.__class__.__name__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ x.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ '%s'.__mod__(x) }}",
    "{{ [].append(1) }}",
    "{{ messages.clear() }}",
    "{{ (dict.mro)() }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ lipsum(n=10**9) }}",
    "{{ range.__init__.__globals__ }}",
    "{{ function() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% set messages[0] = 1 %}",
]
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ range(99999)|select('in', range(99999)|list)|list|length }}",
    "{% for a in range(99999) if a in big %}{% endfor %}",
    "{% for a in range(99999) %}{% set b = big|map('upper')|list %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ f() ~ f() }}{% endmacro %}{{ f() }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
]
HUGE = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [1] * 10**9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ range(10**9)|list }}",
    "{{ ('a' * 9999)|replace('a', 'b' * 99999) }}",
    "{{ ('a' * 9999).replace('a', 'b' * 99999) }}",
    "{{ ('a' * 9999).replace('', 'b' * 99999) }}",
    "{{ range(99999)|join('x' * 9999) }}",
    "{{ ('x' * 99999).join([''] * 9999) }}",
    "{{ 'a'|indent(10**9, true) }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 3.14|round(10**9) }}",
    "{% set x %}{% for i in range(99999) %}" + "y" * 999 + "{% endfor %}{% endset %}{{ x }}",
    "{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}",
    "{{ [" + "big[0:]," * 999 + "]|length }}",
    grow("'abcdefgh'", "ns.x + ns.x"),
    grow("'abcdefgh'", "ns.x ~ ns.x"),
    grow("'abcdefgh'", "'%s%s' % (ns.x, ns.x)"),
    grow("'abcdefgh'", "'{}{}'.format(ns.x, ns.x)"),
    grow("'abcdefgh'", "ns.x|replace('a', ns.x)"),
    grow("'abcdefgh'", "[ns.x, ns.x]|join"),
    grow("[1]", "ns.x + ns.x"),
    grow("[1]", "[ns.x, ns.x]"),
    grow("{}", "{'a': ns.x, 'b': ns.x}"),
    grow("{}", "dict(a=ns.x, b=ns.x)"),
    grow("3", "ns.x * ns.x"),
    grow("1", "namespace(a=ns.x, b=ns.x)"),
    "{% autoescape 'a'|indent(10**9, true) %}x{% endautoescape %}",
]


@pytest.mark.parametrize("source", [*ESCAPES, *ENDLESS, *HUGE])
def test_hostile_templates_are_stopped(source: str) -> None:
    tracemalloc.start()
    began = time.process_time()  # not the clock on the wall: a busy machine is no hostile template
    try:
        with pytest.raises(FluvialError) as caught:
            run(source, messages=[1, 2], x=3, function=print, big=["a" * 9] * 20_000)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert type(caught.value) in (UnsupportedError, IntegrityError)
    assert time.process_time() - began < 5 and peak < 150e6


def test_a_template_is_stopped_in_any_thread_and_not_by_another() -> None:
    found: dict[str, object] = {}

    def work(name: str, source: str) -> None:
        try:
            found[name] = run(source)
        except FluvialError as error:
            found[name] = error

    threads = [threading.Thread(target=work, args=("endless", ENDLESS[0]))]
    counts = "{% for i in range(9) %}{{ i }}{% endfor %}"
    threads += [threading.Thread(target=work, args=(str(n), counts)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert isinstance(found.pop("endless"), UnsupportedError)
    assert found == {str(n): "012345678" for n in range(4)}


MALFORMED = ["{{", "{% for %}", "{% endif %}", "{{" + "(" * 999 + ")" * 999 + "}}", "{{ 1" + "0" * 9999 + "}}"]


@pytest.mark.parametrize("source", MALFORMED)
def test_malformed_templates(source: str) -> None:
    with pytest.raises(IntegrityError, match="chat template"):
        compile_template(source, QUICK)


def test_what_is_refused_before_it_runs() -> None:
    with pytest.raises(UnsupportedError, match="more than 100"):
        compile_template("a" * 101, Limits(source=100))
    with pytest.raises(UnsupportedError, match="pprint"):
        compile_template("{{ 1|pprint }}", QUICK)


def test_a_template_that_refuses_the_messages() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        run("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["{{ a.b.c }}", "{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{{ [1]|sort(9, 9, 9, 9) }}"])
def test_a_template_that_fails_on_the_messages(source: str) -> None:
    with pytest.raises(UnsupportedError, match="failed on these messages"):
        run(source)


HONEST = {
    "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}": "134",
    "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}": "1",
    "{% for x in 'ab' %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{{ loop.last }}{% endfor %}": "1aFalse2bTrue",
    "  {% if true %}\n  a\n  {% endif %}\nb": "  a\nb",
    "{{ {'é': '<b>'}|tojson }}{{ [1]|tojson(indent=2) }}": '{"é": "<b>"}[\n  1\n]',
    "{{ strftime_now('%Y') }}": f"{datetime.now():%Y}",
    "{% generation %}a{% endgeneration %}": "a",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call f(1) %}c{% endcall %}": "12c",
    "{{ 'a,b'.split(',')|map('upper')|join('-') }}{{ 'abc'[::-1] }}{{ [1, 2, 3][1:] }}": "A-Bcba[2, 3]",
    "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}": "a2b1",
    "{% for k, v in {'c': 3}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'c': 3}|items|list }}": "c3[('c', 3)]",
    "{{ '%s-%02d' % ('a', 3) }}{{ '{}{b}'.format(1, b=2) }}{{ 'abab'.replace('a', 'c', 1) }}": "a-0312cbab",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}": "1",
    "{{ messages|map(attribute='role')|join(',') }}": "user,tool",
    "{{ x is defined and x is none }}{{ y is undefined }}{{ y|default('z') }}": "TrueTruez",
    "{{ -7 // 2 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 1.5 * 2 }}": "-4 1024 3 3.0",
    "{% set n = namespace(a=[]) %}{% for m in messages %}{% set n.a = n.a + [m.role] %}{% endfor %}{{ n.a }}": (
        "['user', 'tool']"
    ),
    "{{ 'a\nb'|indent(2) }}{{ ' a '|trim }}{{ 'a' ~ 1 ~ none }}{{ '<'|e }}{{ 'a' if false }}": "a\n  baa1None&lt;",
    "{{ ''.__class__ }}{{ ''.__class__ is defined }}": "False",
}


@pytest.mark.parametrize("source", HONEST)
def test_honest_templates_have_what_they_need(source: str) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    assert run(source, messages=chat, x=None) == HONEST[source]


def test_a_long_chat_stays_within_the_limits() -> None:
    source = """{% for m in messages %}{% for n in messages[-9:] %}{% if n.role == 'tool' %}{% endif %}{% endfor %}\
{{ '<|im_start|>' + m.role + '\n' + (m.content | trim) + '<|im_end|>\n' }}{% endfor %}"""
    chat = [{"role": "user", "content": "many words " * 40}] * 1000 + [{"role": "user", "content": "long " * 400_000}]
    assert len(run(source, Limits(seconds=30), messages=chat)) > 2_400_000
