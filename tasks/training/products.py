"""Products of one input as one product: q, k and v; gate and up. A compiled graph is rewritten before it is differentiated.

Weights are put one below the other and multiplied once, and the product is cut. So backward, too, has one product for the
gradient of the input and one for those of the weights. Parameters stay what and where they are: optimizer, clipping,
checkpoints and exports know nothing of it. What must stay true: results are those of the products apart, to rounding.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, fx

Compiler = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]
"""Makes code of a graph and its inputs, as torch.compile's backends do."""

_BETWEEN = {"_enter_autocast", "_exit_autocast", "setitem", "iadd", "isub", "imul", "itruediv"}
"""After these, and what ends in one `_`, the same input may be multiplied in another type, or have other values."""


class _Product(NamedTuple):
    node: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    rows: int
    """Of the weight."""


def compiled_together(body: Any, compiler: Compiler | None = None) -> Any:
    """`body` compiled for static sizes, with products of one input as one. `compiler`: by itself, torch's inductor."""
    from torch._inductor.compile_fx import compile_fx

    inductor: Any = compile_fx
    compile_graph: Compiler = compiler or inductor

    def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        put_together(graph)
        return compile_graph(graph, inputs)

    return torch.compile(body, dynamic=False, backend=backend)


def put_together(graph: fx.GraphModule) -> int:
    """Rewrite a graph and those within it. Returns how many products became a part of another."""
    return sum(_rewritten(one) for one in graph.modules() if isinstance(one, fx.GraphModule))


def _rewritten(module: fx.GraphModule) -> int:
    found: dict[Any, list[_Product]] = defaultdict(list)
    stretch = 0
    for node in module.graph.nodes:
        stretch += _may_change_inputs(node)
        if (product := _product(node)) is not None:
            found[node.args[0], product.bias is None, stretch].append(product)
    several = [products for products in found.values() if len(products) > 1]
    for products in several:
        _as_one(module.graph, products)
    if several:
        module.recompile()
    return sum(len(products) for products in several)


def _may_change_inputs(node: fx.Node) -> bool:
    if not node.op.startswith("call_"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _BETWEEN or (name.endswith("_") and not name.endswith("__"))


def _product(node: fx.Node) -> _Product | None:
    """A product with parameters, as torch.nn.Linear computes it; None for every other operation."""
    if node.op != "call_function" or node.target is not functional.linear or node.kwargs:
        return None
    _, weight, bias = (*node.args, None)[:3]
    for parameter in (weight, bias):
        if parameter is not None and not _is_parameter(parameter):
            return None
    assert isinstance(weight, fx.Node) and (bias is None or isinstance(bias, fx.Node))
    return _Product(node, weight, bias, len(weight.meta["example_value"]))


def _is_parameter(value: Any) -> bool:
    """Whether it is there from the graph's beginning on, with a shape that is known."""
    there = isinstance(value, fx.Node) and value.op in ("placeholder", "get_attr")
    return there and isinstance(value.meta.get("example_value"), Tensor)


def _as_one(graph: fx.Graph, products: list[_Product]) -> None:
    first = products[0]
    with graph.inserting_before(first.node):
        weight = graph.call_function(torch.cat, ([one.weight for one in products],))
        bias = first.bias and graph.call_function(torch.cat, ([one.bias for one in products],))
        whole = graph.call_function(functional.linear, (first.node.args[0], weight, bias))
        parts = graph.call_function(torch.split, (whole, [one.rows for one in products], -1))
        cut = [graph.call_function(operator.getitem, (parts, place)) for place in range(len(products))]
    for product, part in zip(products, cut, strict=True):
        product.node.replace_all_uses_with(part)
        graph.erase_node(product.node)
