"""How deep a parameter lies in a network, for the layer-wise decay of learning rates."""

from collections.abc import Callable, Sequence

# Where the parameters of a backbone before its first block are.
STEM = (0, -1)


def layer_depth(
    name: str,
    prefix: str,
    depths: Sequence[int],
    block_of: Callable[[str], tuple[int, int] | None],
) -> tuple[int, int]:
    """Number of the layer of a parameter, and how many layers there are.

    The stem is layer 0, every block is one, and what follows the blocks, heads among it, the last.

    Args:
        name: Name of the parameter.
        prefix: What the names of the backbone begin with.
        depths: Number of blocks of each stage.
        block_of: Stage and block of a name of the backbone, both from 0; ``STEM`` or ``None`` for
            what is before and behind all blocks.
    """
    count = sum(depths) + 2
    place = block_of(name.removeprefix(prefix)) if name.startswith(prefix) else None
    if place is None:
        return count - 1, count
    stage, block = place
    return sum(depths[:stage]) + block + 1, count
