"""The layer over the maps folded into the kernels that follow it."""

import torch
from torch import Tensor

from acmix.tracing import as_number

# Folding the layer into the kernels saves its product and makes the convolution 3N / k_c² times as
# large. Multiply-adds per pixel and channel are k_c² 3N N folded and k_c² (3N + k_c² N) otherwise:
# equal at N = 4, where folding saves a pass. On two AVX-512 cores it wins for 12 maps (56²: 5.8
# against 6.6 ms, training step 19 against 27), and loses for 18 (28²: 6.0 against 3.5 ms).
MAX_FOLDED_MAPS = 12


def is_folded(fc_weight: Tensor) -> bool:
    """Whether the layer is part of the kernels already: it has no taps."""
    return as_number(fc_weight.shape[0]) == 0


def fold(kernels: Tensor, fc_weight: Tensor) -> Tensor:
    """Kernels that read the maps themselves, (C, maps, k_c, k_c).

    Args:
        kernels: (C, taps, k_c, k_c).
        fc_weight: (taps, maps); of no taps where the kernels are folded already.
    """
    if is_folded(fc_weight):
        return kernels
    folded = torch.einsum("ciyx,ij->cjyx", widened(kernels), widened(fc_weight))
    return folded.to(kernels.dtype)


def fold_backward(grad: Tensor, kernels: Tensor, fc_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of kernels and layer, from that of the folded kernels."""
    if is_folded(fc_weight):
        return grad.to(kernels.dtype), torch.zeros_like(fc_weight)
    wide, kernels_wide, layer = widened(grad), widened(kernels), widened(fc_weight)
    dkernels = torch.einsum("cjyx,ij->ciyx", wide, layer)
    dlayer = torch.einsum("cjyx,ciyx->ij", wide, kernels_wide)
    return dkernels.to(kernels.dtype).contiguous(), dlayer.to(fc_weight.dtype).contiguous()


def widened(x: Tensor) -> Tensor:
    """In a wider dtype: weights are small, and their products then round once, at the end."""
    wide = torch.float64 if x.dtype == torch.float32 else torch.float32
    return x.to(torch.promote_types(wide, x.dtype))
