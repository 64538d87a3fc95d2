"""The example of CONTRIBUTING.md, "Add an operator rule". The marked regions are what is printed there."""

from __future__ import annotations

from sample_nets import Sample, frozen

# region rule
from fxprune.analysis.op import Op
from fxprune.rules import registry

rule = registry.child().register  # in fxprune/rules: from fxprune.rules._registry import rule


@rule("aten::diagonal")
def diagonal(op: Op) -> None:
    """Take the diagonal of two axes: both must keep their width, the others pass, a new one is last."""
    x = op.args[0]
    gone = {op.arg(2, "dim1", 0) % x.dim(), op.arg(3, "dim2", 1) % x.dim()}
    ids = op.ids(x)
    for dim in gone:
        op.freeze(ids[dim], f"{op.where} takes a diagonal of it")
    op.set((*(axis for dim, axis in enumerate(ids) if dim not in gone), None))


# endregion

# region row
ROWS = [
    Sample("diagonal", lambda net, y: y.diagonal(0, 2, 3).unsqueeze(-1)),
    frozen(
        "diagonal",
        "takes a diagonal of it",
        lambda net, y: y + y.diagonal(0, 1, 2).unsqueeze(-1),
        kind="tokens",
    ),
]
# endregion
