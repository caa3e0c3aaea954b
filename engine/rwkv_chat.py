"""RWKV's own form of chat, for the official files, which hold no template.

Turns are `User: ...`, `Assistant: ...` and `System: ...`, and an empty line ends each of them. So empty lines inside
what a user or a system says are left out, and an answer ends where the model begins to write the user's next turn.
Nothing follows the last colon: the answer brings its own space.
"""

from __future__ import annotations

from dataclasses import replace

from fluvial.engine.generation import Generation
from fluvial.engine.rwkv_tokenizer import WorldTokenizer
from fluvial.engine.template import ChatTemplate

STOP = ("\n\nUser:",)
TEMPLATE = """\
{%- for message in messages -%}
    {%- set said = message.content.replace('\\r\\n', '\\n').strip() -%}
    {%- if message.role != 'assistant' -%}
        {%- set said = said.split('\\n') | select | join('\\n') -%}
    {%- endif -%}
    {{- message.role | capitalize }}: {{ said + '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    Assistant:
{%- endif -%}
"""


def chat_template(tokenizer: WorldTokenizer) -> ChatTemplate:
    """The template."""
    return ChatTemplate(TEMPLATE, controls=tokenizer.controls, names=tokenizer.names)


def ending(generation: Generation) -> Generation:
    """The same defaults, with an answer's end."""
    return replace(generation, stop=STOP)
