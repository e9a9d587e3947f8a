"""Which operations bend. All others that have an interval rule are linear, or made of straight pieces."""

from __future__ import annotations

# Names of PyTorch's functions and of Keras' layers, operations and activations, in lower case, without underscores.
# fmt: off
_CURVED = frozenset({
    "sigmoid", "tanh", "softsign", "logsigmoid", "selu", "tanhshrink", "exp", "expm1", "exponential", "erf", "atan", "arctan",
    "softplus", "elu", "celu", "glu", "gelu", "silu", "swish", "mish", "hardswish", "hardsilu", "squareplus", "sparseplus",
    "square", "pow", "power", "sqrt", "log", "rsqrt", "log1p", "reciprocal", "rdiv", "logsumexp",
    "layernorm", "layernormalization", "rmsnorm", "groupnorm", "groupnormalization", "instancenorm", "normalize",
    "norm", "linalgvectornorm",
})
_PRODUCTS = frozenset({
    "mul", "multiply", "rmul", "matmul", "rmatmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addcmul", "einsum", "div", "divide",
    "truedivide", "truediv",
})
# fmt: on


def bends(operation: str, operands: int) -> bool:
    """Whether an operation is curved in what depends on the network's input.

    Args:
        operation: its name in its framework.
        operands: how many of its arguments depend on the input; a product of two bends.
    """
    name = operation.replace("_", "").lower()
    return name in _CURVED or (operands > 1 and name in _PRODUCTS)
