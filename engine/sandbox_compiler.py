"""jinja2's compiler, with a call to the budget (`sandbox_budget.py`) wherever a template can spend time or memory.

The calls go to methods of the environment (`sandbox.py`): `tick` before a block and around a comparison or an item,
`keep` around a new list, tuple, dict or slice, `join_values` in place of `~`. Operators and calls are intercepted by
jinja2 itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BudgetedCode(CodeGenerator):
    """jinja2's compiler, with a call to the budget wherever a template can spend time or memory."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def _within(self, function: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{function}(")
        visit(node, frame)
        self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._within("tick", super().visit_Compare, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._within("keep", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._within("keep", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._within("keep", super().visit_Tuple, node, frame)
        else:  # the target of an assignment
            super().visit_Tuple(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._within("join_values", super().visit_Tuple, nodes.Tuple(node.nodes, "load"), frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        is_slice = isinstance(node.arg, nodes.Slice)
        self._within("keep" if is_slice else "tick", super().visit_Getitem, node, frame)
