"""Expressions from a plugin's config mean what `re` says, and cannot keep the machine busy."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters import expressions
from fluvial.adapters.errors import IntegrityError, UnsupportedError

# as PEFT, Unsloth and ms-swift write them
PUBLISHED = (
    r".*\.(0|2)\..*(up|q)_proj",
    r"^(model|language_model)(?!.*(lm_head|output|emb|shared)).*",
    r"(?:.*?(?:vision|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))",
    r"(?=.*layers\.\d+\.).*(?<!k)_proj$",
)
NAMES = [
    f"{tower}.layers.{layer}.{part}"
    for tower in ("model", "text_model", "model.visual", "language_model.model")
    for layer in (0, 2, 17)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "lm_head")
]

atoms = st.sampled_from(["a", "b", ".", r"\.", r"\d", r"\w", r"\W", "[ab]", "[^a]", "[a-c1]", r"\b", "^", "$", ""])
trees = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{1,2}", "{2}", "{0,1}?"])).map(
            lambda both: f"({both[0]}){both[1]}"
        ),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(trees, st.text("ab1.c\n", max_size=6))
def test_it_is_re(expression: str, text: str) -> None:
    assert expressions.fullmatch(expression, text) == (re.fullmatch(expression, text) is not None)
    for form in (r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)"):
        assert expressions.match(form, expression, text) == (re.match(form.format(expression), text) is not None)


@pytest.mark.parametrize("expression", PUBLISHED)
def test_published_expressions(expression: str) -> None:
    wanted = [name for name in NAMES if re.fullmatch(expression, name)]
    assert 0 < len(wanted) < len(NAMES)
    assert [name for name in NAMES if expressions.fullmatch(expression, name)] == wanted


@pytest.mark.parametrize(
    "expression",
    ["(a+)+b", "(a|a)*b", "(a|a)" * 40 + "b", ".*.*.*.*.*.*.*.*b", "(?:(?:a*)*)*b", "(a?){40}a{40}b", "(?!(a+)+b)c"],
)
def test_what_keeps_re_busy_for_years_ends(expression: str) -> None:
    assert not expressions.fullmatch(expression, "a" * 40)


def test_what_still_costs_too_much_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="steps"):
        expressions.fullmatch(r"(?:(?:(?!.*(?!.*(?!.*b)a)a).)*a)*" * 9, "a" * 500)


@pytest.mark.parametrize(
    ("expression", "error", "said"),
    [
        ("(a", IntegrityError, "damaged"),
        ("a)", IntegrityError, "damaged"),
        ("a{99999999999}", IntegrityError, "damaged"),
        ("(a)\\1", UnsupportedError, "groupref"),
        ("(?i)a*", UnsupportedError, "flags"),
        (r"\Ba*", UnsupportedError, "non boundary"),
        ("(?i:a)*", UnsupportedError, "subpattern"),
        ("(a?){4000000000}b", UnsupportedError, "steps"),
        ("a" * 5000, UnsupportedError, "5000 characters"),
        ("(" * 1500 + "a*" + ")" * 1500, UnsupportedError, "nested"),
    ],
)
def test_what_is_refused(expression: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        expressions.fullmatch(expression, "a")
