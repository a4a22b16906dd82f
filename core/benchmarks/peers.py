"""Other people's attention over a k×k window, where it runs at all."""

from collections.abc import Callable

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def flex_attention(size: int, kernel_size: int = 7, device: str = "cpu") -> Attention | None:
    """Torch's compiled flex_attention on maps of size²; its window is cut at the border.

    ``None``, with a line that says why, where it does not run.
    """
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def inside(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            dy, dx = query // size - key // size, query % size - key % size
            return (dy.abs() <= kernel_size // 2) & (dx.abs() <= kernel_size // 2)

        mask = create_block_mask(inside, None, None, size**2, size**2, device=device)
        compiled = torch.compile(flex_attention)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            sequences = (x.flatten(3).transpose(2, 3).contiguous() for x in (q, k, v))
            return compiled(*sequences, block_mask=mask)

        with torch.no_grad():
            run(*[torch.zeros(1, 4, 16, size, size, device=device)] * 3)
    except Exception as error:  # whatever a peer fails with is a line of the report
        print(f"flex_attention at {size}² does not run: {str(error).splitlines()[0][:100]}")
        return None
    return run


def natten(kernel_size: int = 7) -> Attention | None:
    """NATTEN's neighbourhood attention, whose windows shift inwards at the border."""
    try:
        from natten.functional import na2d
    except ImportError:
        print("natten is not installed")
        return None

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return na2d(*(x.permute(0, 3, 4, 1, 2).contiguous() for x in (q, k, v)), kernel_size)

    return run
