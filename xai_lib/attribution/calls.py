"""What kind of call a torch function is, by its name: the table behind `rules`.

Usage::

    name = call_name(torch.Tensor.__iadd__)             # "add"
    is_affine(name, args, kwargs, operands)

Every name is tested in each form that torch gives it (module, function, method, operator, in place), because names are
not promised from one version of torch to the next. A call that is in no table is refused, so a name that changes can
make a method refuse a network, but not make it wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

# Element-wise calls. With a kink, the slope between two inputs is exact however close they are. Smooth ones: the
# derivative is better where they are close, since rounding spoils the slope.
KINKED_RECTIFIERS = frozenset(
    "relu relu6 hardtanh leaky_relu prelu elu celu selu hardswish threshold clamp clamp_min clip".split()
)
SMOOTH_RECTIFIERS = frozenset("silu gelu mish softplus".split())
RECTIFIERS = KINKED_RECTIFIERS | SMOOTH_RECTIFIERS
SMOOTH = SMOOTH_RECTIFIERS | frozenset("sigmoid tanh logsigmoid exp square pow".split())
ELEMENTWISE = RECTIFIERS | SMOOTH | frozenset("hardsigmoid abs clamp_max".split())
POOLS = {"max_pool2d": 6, "adaptive_max_pool2d": 2}  # arguments before `return_indices`

AFFINE = frozenset(
    """add sub rsub neg cat stack hstack vstack mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d interpolate pad flatten unflatten view view_as reshape reshape_as
    permute transpose swapaxes swapdims movedim t getitem setitem select narrow chunk split tensor_split unbind squeeze
    unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave clone contiguous copy to float double type
    type_as roll flip cumsum pixel_shuffle pixel_unshuffle where masked_fill index_select
    .T .mT""".split()
)
AFFINE_IN_ONE = frozenset(  # affine as long as a single operand depends on the image
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul mm bmm mv dot einsum addmm
    mul batch_norm""".split()
)
DROPOUTS = frozenset("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split())
ASKS = frozenset(  # answers that do not depend on the image's values
    """size dim ndimension numel nelement stride len is_contiguous is_floating_point is_complex element_size
    storage_offset get_device is_same_size zeros_like ones_like empty_like full_like new_zeros new_ones new_empty
    new_full .shape .ndim .dtype .device .layout .is_cuda .is_cpu .is_mps .is_mkldnn .is_sparse .is_quantized .is_nested
    .requires_grad .is_leaf ._version .names .itemsize .nbytes .grad_fn""".split()
)
SYNONYMS = {
    **dict.fromkeys(("iadd", "radd"), "add"),
    **dict.fromkeys(("isub", "subtract"), "sub"),
    **dict.fromkeys(("imul", "rmul", "multiply"), "mul"),
    **dict.fromkeys(("truediv", "itruediv", "idiv", "divide", "true_divide"), "div"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **{"negative": "neg", "absolute": "abs", "ipow": "pow", "log_sigmoid": "logsigmoid", "special_expit": "sigmoid"},
}


def call_name(func: Callable[..., Any]) -> str:
    """The name under which a call is looked up: ``Tensor.__iadd__``, ``add_`` and ``torch.add`` are all "add"."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return f".{func.__self__.__name__}"  # type: ignore[attr-defined]
    if name != "__float__":  # a number; `Tensor.float` gives a tensor
        name = name.strip("_")
    return SYNONYMS.get(name, name)


def dependent(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors that need a gradient among the arguments, and in lists of them."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.requires_grad:
                found.append(value)
        elif isinstance(value, list | tuple):
            found += dependent(value, {})
    return found


def is_affine(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Tensor]) -> bool:
    """Whether a call's output is affine in its operands, which are all tensors that depend on the image."""
    if name == "batch_norm":
        return not (kwargs.get("training") or (len(args) > 5 and args[5]))
    if name in DROPOUTS:
        return not kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    if name == "div":
        return len(operands) == 1 and args[0] is operands[0] and kwargs.get("rounding_mode") is None
    return name in AFFINE or (name in AFFINE_IN_ONE and len(operands) == 1)
