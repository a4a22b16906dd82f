"""The operators of ACmix as functions: check the arguments, choose a backend, call it."""

import torch
from torch import Tensor

from acmix.arguments import (
    check_aggregation,
    check_attention,
    check_convolution,
    check_difference,
    check_map_windows,
    check_mix,
    check_paths,
    check_windows,
)
from acmix.backends import choose, find_joint
from acmix.backends.derivatives import attention_for
from acmix.fx import fx_function
from acmix.geometry import can_reflect
from acmix.mixing import add_paths
from acmix.tracing import as_number, is_known, unflatten


@fx_function
def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None = None,
    *,
    kernel_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention of each pixel over the k×k window around it (paper Eq. 3–5, §4.1).

    Output pixel p sits at input position ``stride * p`` and sees the keys at
    ``stride * p + dilation * o`` for every window offset o. Window positions outside the image are
    reflected without repeating the edge; on a map too small for that
    (``dilation * (kernel_size // 2) >= min(H, W)``) they are left out of the softmax::

        logit(p, r) = D^(-1/2) * q_p . (k_r + position_p - position_r)
        out_p = sum_r softmax_r(logit(p, r)) * v_r

    Args:
        q: Queries, (B, N, D, H, W), at full resolution and not scaled.
        k: Keys, (B, N, D, H, W).
        v: Values, (B, N, D, H, W).
        position: Position encoding, (D, H, W), shared by batch and heads; ``None`` for none.
            Only differences of it count.
        kernel_size: Side of the window in keys, odd.
        stride: Distance of neighbouring queries, in pixels.
        dilation: Distance of neighbouring keys, in pixels.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B, N, D, ceil(H / stride), ceil(W / stride)), in the dtype of ``q``.

    Raises:
        InputError: A shape, a size or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> q, k, v = torch.rand(3, 1, 4, 16, 9, 14).unbind()
        >>> sliding_window_attention(q, k, v, kernel_size=5, stride=2).shape
        torch.Size([1, 4, 16, 5, 7])
    """
    check_attention(q, k, v, position, kernel_size, stride, dilation)
    run = choose("sliding_window_attention", backend, q)
    with attention_for(backend, q):
        return run(q, k, v, position, kernel_size=kernel_size, stride=stride, dilation=dilation)


@fx_function
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention inside windows of L pixels with a bias per pair of pixels (Swin).

    ``out = softmax(D^(-1/2) * q kᵀ + bias + mask) v``, window by window.

    Args:
        q: Queries, (B * nW, N, L, D), the windows of one image together, not scaled.
        k: Keys, (B * nW, N, L, D).
        v: Values, (B * nW, N, L, D).
        bias: Relative position bias, (N, L, L).
        mask: Added to the logits of window ``w`` of every image, (nW, L, L).
        dropout: Probability of dropping an attention weight.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B * nW, N, L, D).

    Raises:
        InputError: A shape or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> q, k, v = torch.rand(3, 8, 2, 49, 16).unbind()
        >>> window_attention(q, k, v, bias=torch.zeros(2, 49, 49)).shape
        torch.Size([8, 2, 49, 16])
    """
    check_windows(q, k, v, bias, mask)
    return choose("window_attention", backend, q)(q, k, v, bias, mask, dropout=dropout)


@fx_function
def map_window_attention(
    qkv: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    *,
    window_size: tuple[int, int],
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention inside the windows of a map, from projections of its pixels (Swin).

    The same as ``window_attention`` on the windows of the map; a backend that does it on the map
    itself reads the projections, and writes their gradient, where they lie.

    Args:
        qkv: Projections, (B, H, W, 3N * D), as a linear layer makes them: q heads 0..N-1, then k
            heads, then v heads; unscaled.
        bias: Relative position bias, (N, L, L), for the L pixels of a window row by row.
        mask: Added to the logits of window ``w`` of every image, (nW, L, L); windows row by row.
        window_size: Height and width of a window, which divide those of the map.
        dropout: Probability of dropping an attention weight.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B, H, W, N * D).

    Raises:
        InputError: A shape or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> qkv, bias = torch.rand(2, 14, 21, 3 * 2 * 16), torch.zeros(2, 49, 49)
        >>> map_window_attention(qkv, bias, window_size=(7, 7)).shape
        torch.Size([2, 14, 21, 32])
    """
    check_map_windows(qkv, bias, mask, window_size)
    joint = None if dropout else find_joint("map_window_attention", backend, qkv)
    if joint is not None:
        return joint(qkv, bias, mask, window_size=window_size)
    heads = as_number(bias.shape[0])
    win_h, win_w = window_size
    batch, height, width, channels = qkv.shape
    rows, cols, dim = height // win_h, width // win_w, channels // 3
    qkv = qkv.view(batch, rows, win_h, cols, win_w, 3, heads, dim // heads)
    q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(1, 3).unbind()
    out = window_attention(q, k, v, bias, mask, dropout=dropout, backend=backend)
    out = out.view(batch, rows, cols, heads, win_h, win_w, dim // heads)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, dim)


@fx_function
def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None = None,
    *,
    rest: Tensor | None = None,
    stride: int = 1,
    backend: str | None = None,
) -> Tensor:
    """The convolution path of ACmix: a layer over 3N maps, then shift and sum (paper Eq. 7–9).

    The 3N projected maps of width D become ``taps`` maps by a fully connected layer shared by all
    channels and pixels. Channel d of all of them is then one group of a grouped convolution whose
    one-hot kernels are the shifts, with M output channels a group. Zero padding, applied after
    the layer, keeps the size.

    Args:
        qkv: Projections, (B, 3N * D, H, W): q heads 0..N-1, then k heads, then v heads; unscaled.
        fc_weight: (taps, 3N), with taps = k_c²; (0, 3N) where the layer is folded into the kernels.
        kernels: (D * M, taps, k_c, k_c); output channel d * M + m belongs to group d. ``None``
            moves tensors instead: tap i shifted by (i // k_c, i % k_c) - k_c // 2, with M = 1.
            With the layer folded in, (D * M, 3N, k_c, k_c), and with its bias one more, for a map
            of ones; at most 12 maps.
        fc_bias: (taps,) or ``None``.
        rest: The last of the maps, (B, m * D, H, W), where they are a tensor of their own; ``qkv``
            then has the others.
        stride: Stride of the convolution, in pixels.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B, D * M, ceil(H / stride), ceil(W / stride)), channel order d * M + m.

    Raises:
        InputError: A shape, a size or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> maps = torch.rand(1, 12 * 16, 9, 14)  # q, k and v of four heads
        >>> convolution_path(maps, torch.rand(9, 12), torch.rand(64, 9, 3, 3)).shape
        torch.Size([1, 64, 9, 14])
    """
    check_convolution(qkv, rest, fc_weight, kernels, fc_bias, stride, _is_mixed(qkv))
    weights = (fc_weight, kernels, fc_bias)
    if rest is not None:
        joint = find_joint("split_convolution_path", backend, qkv)
        if joint is not None:
            return joint(qkv, rest, *weights, stride=stride)
        qkv = torch.cat([qkv, rest], dim=1)
    return choose("convolution_path", backend, qkv)(qkv, *weights, stride=stride)


@fx_function
def sliding_window_paths(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    *,
    kernel_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Both paths of ACmix with sliding window attention, from one set of projections.

    The same as ``sliding_window_attention`` and ``convolution_path`` on the same maps; a backend
    that runs the two together reads the projections, and writes their gradient, once.

    Args:
        qkv: Projections, (B, 3N * D, H, W): q heads 0..N-1, then k heads, then v heads; unscaled.
        position: Position encoding of the attention, (D, H, W).
        fc_weight: Layer of the convolution path, (taps, 3N), or (0, 3N) where it is folded.
        kernels: Its shift kernels, (D * N, taps, k_c, k_c), or the folded, (D * N, 3N, k_c, k_c).
        kernel_size: Side of the attention window in keys, odd.
        stride: Stride of both outputs, in pixels.
        dilation: Distance of neighbouring keys of the attention, in pixels.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        F_att in channel order n * D + d and F_conv in channel order d * N + n, both
        (B, N * D, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A shape, a size or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> maps, position = torch.rand(1, 12 * 16, 9, 14), torch.rand(16, 9, 14)
        >>> paths = sliding_window_paths(maps, position, torch.rand(9, 12), torch.rand(64, 9, 3, 3))
        >>> [tuple(path.shape) for path in paths]
        [(1, 64, 9, 14), (1, 64, 9, 14)]
    """
    mixed = _is_mixed(qkv)
    check_paths(qkv, position, fc_weight, kernels, kernel_size, stride, dilation, mixed)
    window = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    joint = find_joint("sliding_window_paths", backend, qkv)
    if joint is not None:
        return joint(qkv, position, fc_weight, kernels, **window)
    heads = as_number(fc_weight.shape[1]) // 3
    q, k, v = unflatten(qkv, 1, (3, heads, -1)).unbind(1)
    attention = sliding_window_attention(q, k, v, position, **window, backend=backend)
    convolution = convolution_path(qkv, fc_weight, kernels, stride=stride, backend=backend)
    return attention.flatten(1, 2), convolution


@fx_function
def mixed_paths(
    qkv: Tensor,
    position: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    kernel_size: int = 7,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """ACmix with sliding window attention, from one set of projections (paper Eq. 10).

    ``alpha * F_att + beta * F_conv + offset`` for the two paths of ``sliding_window_paths``. A
    backend that does it in one pass writes no path by itself.

    Args:
        qkv: Projections, (B, 3N * D, H, W): q heads 0..N-1, then k heads, then v heads; unscaled.
        position: Position encoding of the attention, (D, H, W).
        fc_weight: Layer of the convolution path, (taps, 3N), or (0, 3N) where it is folded.
        kernels: Its shift kernels, (D * N, taps, k_c, k_c), or the folded, (D * N, 3N, k_c, k_c).
        alpha: Factor of the attention, (1,), or (N * D, 1, 1) by channel; ``None`` for 1.
        beta: Factor of the convolution path, (1,); ``None`` for 1.
        offset: Added to every pixel, (N * D, 1, 1); ``None`` for 0.
        kernel_size: Side of the attention window in keys, odd.
        stride: Stride of the output, in pixels.
        dilation: Distance of neighbouring keys of the attention, in pixels.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B, N * D, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A shape, a size or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> maps, position = torch.rand(1, 12 * 16, 9, 14), torch.rand(16, 9, 14)
        >>> weights = torch.rand(9, 12), torch.rand(64, 9, 3, 3)
        >>> mixed_paths(maps, position, *weights, *torch.ones(2, 1), kernel_size=3).shape
        torch.Size([1, 64, 9, 14])
    """
    tensors = (qkv, position, fc_weight, kernels)
    factors = (alpha, beta, offset)
    check_mix(*tensors, *factors, kernel_size, stride, dilation, _is_mixed(qkv))
    window = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    joint = find_joint("mixed_paths", backend, qkv)
    # The joint gradient is that of one factor for all channels.
    by_channel = alpha is not None and alpha.dim() > 1 and torch.is_grad_enabled()
    if joint is not None and not by_channel:
        return joint(*tensors, *factors, **window)
    kernels = kernels if beta is None else kernels * beta
    paths = (qkv, position, fc_weight, kernels)
    attention, convolution = sliding_window_paths(*paths, **window, backend=backend)
    return add_paths(attention, convolution, alpha, offset)


@fx_function
def neighbourhood_aggregation(
    v: Tensor,
    w: Tensor,
    *,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    reflect: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Sum of the values around each pixel under weights of its own (SAN's aggregation).

    Channels share weights: channel c takes those of channel c mod Cw. Offsets o of the window go
    row by row::

        out[b, c, p] = sum_o w[b, c mod Cw, o, p] * v[b, c, stride * p + offset(o)]

    Args:
        v: Values, (B, C, H, W).
        w: Weights, (B, Cw, kernel_size², ceil(H / stride), ceil(W / stride)), Cw dividing C.
        kernel_size: Side of the window in pixels, odd.
        stride: Distance of neighbouring outputs, in pixels.
        dilation: Distance of neighbouring values of a window, in pixels.
        reflect: Reflect the border without repeating the edge. Without it, and on a map too small
            for it (``dilation * (kernel_size // 2) >= min(H, W)``), values outside are zero.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A shape, a size, a dtype or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> v, w = torch.rand(1, 16, 9, 14), torch.rand(1, 2, 9, 9, 14)
        >>> neighbourhood_aggregation(v, w, kernel_size=3).shape
        torch.Size([1, 16, 9, 14])
    """
    check_aggregation(v, w, kernel_size, stride, dilation)
    reflect = _reflects(v, kernel_size, dilation, reflect)
    run = choose("neighbourhood_aggregation", backend, v)
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, reflect=reflect)
    return run(v, w, **options)


@fx_function
def neighbourhood_difference(
    a: Tensor,
    b: Tensor | None = None,
    *,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    reflect: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Each pixel of ``a`` minus the pixels of ``b`` around it (SAN's pairwise relation).

    ``out[b, c, o, p] = a[b, c, stride * p] - b[b, c, stride * p + offset(o)]``, offsets row by
    row. The result has k² times the input's elements.

    Args:
        a: Centres, (B, C, H, W).
        b: Neighbours, (B, C, H, W); ``None`` for ``a`` itself.
        kernel_size: Side of the window in pixels, odd.
        stride: Distance of neighbouring outputs, in pixels.
        dilation: Distance of neighbouring pixels of a window.
        reflect: Reflect the border without repeating the edge. Without it, and on a map too small
            for it (``dilation * (kernel_size // 2) >= min(H, W)``), ``b`` is zero outside.
        backend: A key of ``acmix.backends.BACKENDS``; ``None`` takes the first that can run
            the call.

    Returns:
        (B, C, kernel_size², ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A shape, a size, a dtype or the backend's name is wrong.
        BackendError: The named backend can't run this call; the message says why.

    Examples:
        >>> neighbourhood_difference(torch.rand(1, 16, 9, 14), kernel_size=3).shape
        torch.Size([1, 16, 9, 9, 14])
    """
    b = a if b is None else b
    check_difference(a, b, kernel_size, stride, dilation)
    reflect = _reflects(a, kernel_size, dilation, reflect)
    run = choose("neighbourhood_difference", backend, a)
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, reflect=reflect)
    return run(a, b, **options)


def _is_mixed(x: Tensor) -> bool:
    """Whether weights may be of another kind than the maps: under autocast."""
    device = x.device.type
    # The only device of ours without autocast; torch.compile of 2.9 can't ask whether it has it.
    return device != "meta" and torch.is_autocast_enabled(device)


def _reflects(x: Tensor, kernel_size: int, dilation: int, reflect: bool) -> bool:
    """Whether the border reflects: where it is wanted, and the map is large enough, if known."""
    size = x.shape[2:]
    large = not is_known(*size) or can_reflect(size, dilation * (kernel_size // 2))
    return bool(reflect) and large
