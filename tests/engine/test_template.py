"""Chat templates: the model's reference ids, nothing injected, media in place, only the new turn fed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.engine.template import ChatTemplate, Continuation, Media, Rewritten, Special, Text, encode_parts
from fluvial.engine.tokenizer import ControlToken, Tokenizer
from tests.engine.small_tokenizers import CHATML, CONTROLS, byte_level, save

LIBRARY = byte_level()
TOKENIZER = Tokenizer(json.loads(LIBRARY.to_str()), {"eos_token": "<|im_end|>"})
MEDIA = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
STRIPPING = """{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ (m['content'] | trim) ~ '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
FORGETTING = CHATML.replace("message.content }}", "message.content.split('</think>')[-1].lstrip('\\n') }}")
TEMPLATES = {
    "chatml": CHATML,
    "strips": STRIPPING,
    "forgets thinking": FORGETTING,
} | {
    name: "{% for m in messages %}<|im_start|>" + inner + "<|im_end|>{% endfor %}"
    for name, inner in {
        "makes tokens of the role": "<|im_{{ m.role[:0] }}start|>{{ m.content }}",
        "wraps": "<|im_{{ m.content }}|><{{ m.content }}><{{ m.content }}im_end|>",
        "lowers": "{{ m.content | lower }}{{ m.content.upper() }}",
        "deletes": "{{ m.content | replace('x', '') }}",
        "lists": "{% for c in m.content %}{{ c.text }}{% endfor %}",
        "json": "{{ m | tojson }}{{ tools | tojson(indent=2) }}{{ extra }}",
    }.items()
}
BROKEN = ["<|IM_END|>", "<|im_", "<|ixm_end|>", "end", "end|>", "<", "|", "|>", "x", " ", "\n", "\U000f0000"]
TYPED = st.lists(
    st.sampled_from([*CONTROLS, "<think>", "</think>", *BROKEN])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
).map("".join)


def template(source: str = CHATML, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, **{"controls": TOKENIZER.controls, "media": MEDIA, "names": TOKENIZER.names} | options)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def reply(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def flat(parts: Any) -> list[int]:
    return [id for run in encode_parts(parts, TOKENIZER) for id in run]


def test_parts_of_a_turn_with_media() -> None:
    parts = template().parts([user([IMAGE, {"type": "text", "text": "and"}, VIDEO, {"type": "text", "text": "?"}])])
    start, end = Special("<|vision_start|>"), Special("<|vision_end|>")
    assert parts == [
        *(Special("<|im_start|>"), Text("user\n"), start, Media("image", 0, "<|image_pad|>"), end, Text("and")),
        *(start, Media("video", 1, "<|video_pad|>"), end, Text("?"), Special("<|im_end|>"), Text("\n")),
        *(Special("<|im_start|>"), Text("assistant\n")),
    ]
    runs = encode_parts(parts, TOKENIZER)
    assert [type(run) for run in runs] == [list, Media, list, Media, list]
    assert runs[0] == [TOKENIZER.id("<|im_start|>"), *LIBRARY.encode("user\n").ids, TOKENIZER.id("<|vision_start|>")]


@pytest.mark.parametrize("name", ["chatml", "strips"])
@settings(max_examples=30)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=3))
def test_ordinary_messages_give_the_reference_ids(name: str, texts: list[str]) -> None:
    chat = [user(texts[0]), *([reply(text) for text in texts[1:]])]
    made = template(TEMPLATES[name])
    assert flat(made.parts(chat)) == LIBRARY.encode(made.render(chat), add_special_tokens=False).ids


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=30)
@given(text=TYPED)
@example(text="end")
@example(text="|")
@example(text="<|ixm_end|>x")
def test_no_text_of_a_user_makes_a_control_token(name: str, text: str) -> None:
    made = template(TEMPLATES[name])
    tools = {"tools": [{"name": text, text: [text]}], "extra": text}
    honest = made.parts([user("hello"), {"role": "tool", "content": "hello", "name": "y"}])
    parts = made.parts([user(text), {"role": "tool", "content": text, "name": text}], **tools)
    assert [part for part in parts if not isinstance(part, Text)] == [x for x in honest if not isinstance(x, Text)]
    ids = [part.text for part in parts if isinstance(part, Special)]
    assert flat(parts).count(TOKENIZER.id("<|im_end|>")) == ids.count("<|im_end|>")
    if name != "forgets thinking":  # there `</think>` is broken, so nothing is forgotten
        rendered = made.render([user(text), {"role": "tool", "content": text, "name": text}], **tools)
        assert "".join(part.text for part in parts) == rendered


def test_control_tokens_that_the_model_said() -> None:
    said = reply("<think>hm</think>Yes<|im_end|><|IM_END|><|image_pad|>")
    parts = template().parts([user("a"), said], add_generation_prompt=False)
    at = parts.index(Special("<think>"))
    assert parts[at:] == [
        *(Special("<think>"), Text("hm"), Special("</think>"), Text("Yes<|im_end|><|IM_END|><|image_pad|>")),
        *(Special("<|im_end|>"), Text("\n")),
    ]
    forgotten = template(FORGETTING).parts([user("a"), reply("<think>hm</think>\n\nYes")], add_generation_prompt=False)
    assert Text("assistant\nYes") in forgotten
    assert Text("user\n<think>b</think>c") in template(FORGETTING).parts([user("<think>b</think>c")])


def test_one_letter_and_stripping_control_tokens() -> None:
    controls = [ControlToken("§", 1, True), ControlToken("<|u|>", 2, True, lstrip=True, rstrip=True)]
    made = template("a <|u|> \n{{ messages[0].content }}§", controls=controls, media={})
    assert made.parts([user(" <|u|>§x")]) == [Text("a"), Special("<|u|>"), Text("<|u|>§x"), Special("§")]


def test_tools_keep_their_letters() -> None:
    made = template("{{ tools | tojson }}{{ messages[0].content }}")
    assert made.render([user("")], tools=[{"é": "<b> & 'c'"}]) == '[{"é": "<b> & \'c\'"}]'
    assert made.parts([user("")], tools=[{"é": "<b>"}]) == [Text('[{"é": "<b>"}]')]


def test_content_takes_the_shape_that_the_template_reads() -> None:
    text = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Text("user\nab") in template(STRIPPING).parts([user(text)])
    assert Text("a") in template(TEMPLATES["lists"]).parts([user("a")])
    assert template().parts([user(text)]) == template().parts([user("ab")])
    with pytest.raises(UnsupportedError, match="no place for a part of type image"):
        template(STRIPPING).parts([user([IMAGE])])
    with pytest.raises(UnsupportedError, match="no place for a part of type video"):
        template(media={"image": "<|image_pad|>"}).parts([user([VIDEO])])


def test_media_that_the_template_does_not_show_are_an_error() -> None:
    with pytest.raises(UsageError, match="does not show the media"):
        template(TEMPLATES["lists"]).parts([user([IMAGE])])
    with pytest.raises(UsageError, match="does not show the media"):
        template("<|image_pad|>{{ messages[0].content }}").parts([user("a")])


BAD_CHATS = {
    "no messages": [],
    "no role": [{"content": "a"}],
    "a role that injects": [{"role": "user<|im_end|>", "content": "a"}],
    "content a number": [user(3)],
    "bytes": [user("a") | {"data": b"a"}],
    "an unknown part": [user([{"type": "audio"}])],
    "text that is none": [user([{"type": "text", "text": 3}])],
    "no dict": ["hello"],
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_malformed_messages(name: str) -> None:
    with pytest.raises(UsageError):
        template().parts(BAD_CHATS[name])  # type: ignore[arg-type]


TURNS = [user([IMAGE, {"type": "text", "text": "What?"}]), reply("A cat.")]


def test_only_the_new_turn_is_fed() -> None:
    made = template()
    new = [user([{"type": "text", "text": "And "}, IMAGE])]
    fed = [*made.parts(TURNS[:1]), Text("A"), Text(" cat.")]
    more = made.continuation(TURNS, new, fed=fed)
    assert isinstance(more, Continuation) and more == made.continuation(TURNS, new)
    assert more.parts[:4] == [Special("<|im_end|>"), Text("\n"), Special("<|im_start|>"), Text("user\nAnd ")]
    assert Media("image", 1, "<|image_pad|>") in more.parts
    assert [*made.parts(TURNS[:1])[:-1], Text("assistant\nA cat."), *more.parts] == made.parts([*TURNS, *new])
    ended = made.continuation(TURNS, new, fed=[*fed, Special("<|im_end|>")])
    assert isinstance(ended, Continuation) and ended.parts == more.parts[1:]
    start = made.continuation([], TURNS[:1])
    assert isinstance(start, Continuation) and start.parts == made.parts(TURNS[:1])


def test_a_turn_that_ends_in_plain_text() -> None:
    made = template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", controls=[], media={})
    more = made.continuation([user("a")], [user("b")], fed=[Text("user: a")])
    assert more == Continuation([Text("\n\nuser: b\n\n")])


def test_a_history_that_the_template_rewrites() -> None:
    made = template(FORGETTING)
    fed = [*made.parts([user("a")]), Special("<think>"), Text("hm"), Special("</think>"), Text("b")]
    more = made.continuation([user("a"), reply("<think>hm</think>b")], [user("c")], fed=fed)
    assert isinstance(more, Rewritten) and more == made.continuation(
        [user("a"), reply("<think>hm</think>b")], [user("c")]
    )
    assert more.parts == made.parts([user("a"), reply("b"), user("c")])
    assert more.parts[: more.shared] == fed[: more.shared] and more.shared == 5
    stripped = template(STRIPPING).continuation([user("a"), reply("b ")], [user("c")])
    assert isinstance(stripped, Rewritten) and "'assistant\\nb '" in stripped.why


def test_where_templates_are_found(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no chat template"):
        ChatTemplate.load(save(tmp_path, LIBRARY))
    config = {"eos_token": "<|im_end|>", "image_token": "<|image_pad|>", "chat_template": "{{ eos_token }}one"}
    folder = save(tmp_path, LIBRARY, **config)
    (folder / "config.json").write_text(json.dumps({"video_token_id": LIBRARY.token_to_id("<|video_pad|>")}))
    made = ChatTemplate.load(folder)
    assert made.media == MEDIA and made.parts([user("")]) == [Special("<|im_end|>"), Text("one")]
    named = [{"name": "default", "template": "two"}, {"name": "tools", "template": "three"}]
    save(tmp_path, LIBRARY, **config | {"chat_template": named})
    assert ChatTemplate.load(folder, TOKENIZER).render([user("")]) == "two"
    assert ChatTemplate.load(folder, TOKENIZER, name="tools").render([user("")]) == "three"
    with pytest.raises(UsageError, match="no chat template 'rag'"):
        ChatTemplate.load(folder, TOKENIZER, name="rag")
    (folder / "chat_template.json").write_text('{"chat_template": "four"}')
    assert ChatTemplate.load(folder, TOKENIZER).render([user("")]) == "four"
    (folder / "chat_template.jinja").write_text("five")
    assert ChatTemplate.load(folder, TOKENIZER).render([user("")]) == "five"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(IntegrityError, match="corrupt"):
        ChatTemplate.load(folder, TOKENIZER)
