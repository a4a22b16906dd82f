"""ACmix with attention inside windows."""

import pytest
import torch
import torch.nn.functional as F

import acmix
from acmix import WindowACmix, reference
from layer_contract import LayerContract
from layers import LAYERS
from released import assert_reproduces
from support import golden


class TestWindowACmix(LayerContract):
    layer = LAYERS["WindowACmix"]

    def attention(self, layer, x):
        """Window by window, with zeros below and to the right."""
        win_h, win_w = layer.window_size
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 0, -width % win_w, 0, -height % win_h))
        out = torch.empty_like(padded)
        for top in range(0, padded.shape[1], win_h):
            for left in range(0, padded.shape[2], win_w):
                at = (slice(None), slice(top, top + win_h), slice(left, left + win_w))
                qkv = layer.qkv(padded[at].flatten(1, 2)).unflatten(2, (3, 2, 4))
                q, k, v = qkv.permute(2, 0, 3, 1, 4)
                att = reference.window_attention(q, k, v, self.bias(layer))
                out[at] = layer.proj(att.transpose(1, 2).flatten(2)).unflatten(1, (win_h, win_w))
        return out[:, :height, :width]

    def bias(self, layer):
        """A number for each head and each difference of rows and columns of query and key."""
        win_h, win_w = layer.window_size
        table = layer.relative_position_bias_table.view(2 * win_h - 1, 2 * win_w - 1, -1)
        places = [(y, x) for y in range(win_h) for x in range(win_w)]
        rows = [
            [table[qy - ky + win_h - 1, qx - kx + win_w - 1] for ky, kx in places]
            for qy, qx in places
        ]
        return torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1)

    def projections(self, layer, x):
        win_h, win_w = layer.window_size
        padded = F.pad(x, (0, 0, 0, -x.shape[2] % win_w, 0, -x.shape[1] % win_h))
        return layer.qkv(padded).permute(0, 3, 1, 2)

    def as_output(self, convolution, x):
        return convolution.permute(0, 2, 3, 1)[:, : x.shape[1], : x.shape[2]]


@pytest.mark.parametrize("backend", ["torch", "reference", None])
@pytest.mark.parametrize("name", ["plain", "masked"])
def test_reproduces_the_released_code(name, backend):
    case = golden("acmix_window.pt")[name]
    layer = WindowACmix(**case["config"], backend=backend)
    layer.load_state_dict(case["state_dict"])
    assert_reproduces(layer, case, case["mask"])


@torch.no_grad
def test_masks_belong_to_windows_row_by_row():
    layer, (x,) = TestWindowACmix().sample((8, 6), mix="attention")
    masks = torch.zeros(4, 12, 12, dtype=torch.float64)
    masks[1] = torch.randn(12, 12, dtype=torch.float64)
    changed = (layer(x, masks) - layer(x)).abs().amax(dim=(0, 3)) > 0
    expected = torch.zeros(8, 6, dtype=torch.bool)
    expected[:4, 3:] = True
    assert torch.equal(changed, expected)


def test_dropout_acts_in_training_only():
    layer = LAYERS["WindowACmix"].make(attn_drop=0.5, proj_drop=0.5)
    (x,) = LAYERS["WindowACmix"].inputs(8, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowACmix(8, 0, 2), "window_size=0: give a positive integer"),
        (
            lambda: WindowACmix(8, 4, 2)(torch.zeros(1, 8, 8, 8), torch.zeros(3, 16, 16)),
            r"mask.shape=\(3, 16, 16\): must be \(4, 16, 16\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(acmix.InputError, match=message):
        make()
