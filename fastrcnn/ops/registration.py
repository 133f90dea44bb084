"""Registration of the operators torch.ops.fastrcnn.roi_pool, roi_pool_out and roi_pool_backward.

The operators have fake kernels, for torch.compile and torch.export, and derivatives of every order. Autocast does not
cast their inputs: bfloat16 features are pooled in bfloat16, and RoIs remain float32, because bin edges need that
precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .arguments import check_roi_values
from .backends import choose_backend

torch.library.define(
    "fastrcnn::roi_pool",
    "(Tensor features, Tensor rois, SymInt height, SymInt width, float scale, str variant, bool with_argmax,"
    " bool check_values) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastrcnn::roi_pool_out",
    "(Tensor features, Tensor rois, float scale, str variant, bool check_values, Tensor(a!) out) -> ()",
)
torch.library.define(
    "fastrcnn::roi_pool_backward",
    "(Tensor grad, Tensor rois, Tensor argmax, SymInt images, SymInt map_height, SymInt map_width,"
    " float scale, str variant, bool channels_last) -> Tensor",
)


def _format(features: Tensor) -> torch.memory_format:
    """Return channels_last if `features` has only this format, otherwise contiguous. The output has the same format."""
    if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


@torch.library.register_fake("fastrcnn::roi_pool")
def _empty_result(
    features: Tensor, rois: Tensor, height: int, width: int, _scale: float, _variant: str, with_argmax: bool, _: bool
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], features.shape[1], height, width)
    out = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=_format(features))
    where = (shape[0], height, width, shape[1]) if with_argmax else (0,)
    return out, torch.empty(where, dtype=torch.int32, device=features.device)


def _fill(
    features: Tensor, rois: Tensor, scale: float, variant: str, check: bool, out: Tensor, argmax: Tensor | None = None
) -> None:
    if check:
        check_roi_values(rois, features.shape[0])
    choose_backend(features.device).forward(features, rois, scale, variant, out, argmax)


torch.library.impl("fastrcnn::roi_pool_out", "CompositeExplicitAutograd", _fill)
torch.library.register_fake("fastrcnn::roi_pool_out", lambda *_: None)


@torch.library.impl("fastrcnn::roi_pool", "CompositeExplicitAutograd")
def _roi_pool(features: Tensor, rois: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, scale, variant, with_argmax, check = rest
    out, argmax = _empty_result(features, rois, *rest)
    _fill(features, rois, scale, variant, check, out, argmax if with_argmax else None)
    return out, argmax


@torch.library.register_fake("fastrcnn::roi_pool_backward")
def _empty_gradient(
    grad: Tensor, _rois: Tensor, _argmax: Tensor, images: int, map_height: int, map_width: int, *rest: Any
) -> Tensor:
    memory = torch.channels_last if rest[-1] else torch.contiguous_format
    shape = (images, grad.shape[1], map_height, map_width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory)


@torch.library.impl("fastrcnn::roi_pool_backward", "CompositeExplicitAutograd")
def _roi_pool_backward(grad: Tensor, rois: Tensor, argmax: Tensor, *rest: Any) -> Tensor:
    *_, scale, variant, _ = rest
    # Half-precision gradients are summed in float32 and rounded once.
    exact = grad if grad.dtype == torch.float64 else grad.float()
    total = _empty_gradient(exact, rois, argmax, *rest)
    choose_backend(grad.device).backward(exact, rois, argmax, scale, variant, total)
    return total.to(grad.dtype)


class Pool(Function):
    """roi_pool with derivatives of every order. The backward pass is a scatter, and its derivative is a gather.

    An autograd.Function also supports forward mode and torch.func transforms. With these, an operator that is
    registered with torch.library has no derivative, or a derivative of zero. The function `pool` selects between this
    class and the operator.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return torch.ops.fastrcnn.roi_pool(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        features, rois, _, _, ctx.scale, ctx.variant, ctx.with_argmax, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.images, _, ctx.map_height, ctx.map_width = features.shape
        ctx.channels_last = _format(features) == torch.channels_last
        ctx.save_for_backward(rois, output[1])
        ctx.save_for_forward(rois, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.with_argmax:
            raise RuntimeError("fastrcnn::roi_pool was called without with_argmax, so it has no gradient")
        rois, argmax = ctx.saved_tensors
        shape = (ctx.images, ctx.map_height, ctx.map_width)
        scatter = Scatter.apply if _transformed(grad) else torch.ops.fastrcnn.roi_pool_backward
        flow = scatter(grad, rois, argmax, *shape, ctx.scale, ctx.variant, ctx.channels_last)
        return flow, None, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        return gather(tangent, *ctx.saved_tensors), None


class Scatter(Function):
    """roi_pool_backward with derivatives of every order. It is linear in its first argument."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return torch.ops.fastrcnn.roi_pool_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, rois, argmax, *ctx.rest = inputs
        ctx.save_for_backward(rois, argmax)
        ctx.save_for_forward(rois, argmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return gather(grad, *ctx.saved_tensors), None, None, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return Scatter.apply(tangent, *ctx.saved_tensors, *ctx.rest)


torch.library.register_autograd("fastrcnn::roi_pool", Pool.backward, setup_context=Pool.setup_context)
torch.library.register_autograd("fastrcnn::roi_pool_backward", Scatter.backward, setup_context=Scatter.setup_context)


def pool(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, variant: str, check: bool) -> Tensor:
    """Return pooled features (K, C, PH, PW). Calls `Pool` for forward mode and torch.func, otherwise the operator."""
    transformed = _transformed(features)
    run = Pool.apply if transformed else torch.ops.fastrcnn.roi_pool
    return run(features, rois, *size, scale, variant, transformed or _requires_gradient(features), check)[0]


def needs_derivative(features: Tensor) -> bool:
    return _requires_gradient(features) or _transformed(features)


def _requires_gradient(features: Tensor) -> bool:
    return features.requires_grad and torch.is_grad_enabled()


def _transformed(x: Tensor) -> bool:
    """Return whether `x` has a tangent for forward mode, or can have one inside a torch.func transform."""
    wrapped = torch._C._are_functorch_transforms_active()
    if wrapped and not torch.compiler.is_compiling():
        return True
    tangent = forward_ad.unpack_dual(x).tangent is not None
    if tangent and torch.compiler.is_compiling():  # torch.compile would silently ignore Pool.jvp
        raise NotImplementedError("RoI pooling has no forward-mode derivative under torch.compile")
    return wrapped or tangent


def gather(features: Tensor, rois: Tensor, argmax: Tensor) -> Tensor:
    """Return the values (K, C, PH, PW) of `features` (N, C, H, W) at the cells in `argmax`, and 0 for empty bins.

    `argmax` has the shape (K, PH, PW, C). Only torch operators with derivatives of every order are used.
    """
    images, channels = features.shape[:2]
    # An RoI with an invalid batch index has only empty bins, but the index must be valid for the gather.
    image = rois[:, 0].nan_to_num().clamp(0, images - 1).long()[:, None, None, None]
    channel = torch.arange(channels, device=features.device)
    values = features.flatten(2)[image, channel, argmax.clamp(min=0).long()]
    return torch.where(argmax >= 0, values, 0).permute(0, 3, 1, 2)
