"""Reading checkpoints: the released files load as data, and nothing in any file is run."""

import argparse
import builtins
import os
import pickle
import random
import re
import sys
import traceback
import types
import zipfile
from collections import Counter, OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.serialization import get_safe_globals

from acmix.checkpoint import load_released, read_checkpoint, state_dict_of
from acmix.errors import CheckpointError, InputError
from support import GOLDEN

YACS = "yacs.config.CfgNode"
BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@contextmanager
def foreign(dotted, *bases):
    """A class that pickles under a name of a package that is not there when it is read."""
    module, _, name = dotted.rpartition(".")
    parts = module.split(".")
    with pytest.MonkeyPatch.context() as patch:
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            patch.setitem(sys.modules, prefix, types.ModuleType(prefix))
        cls = type(name, bases, {"__module__": module})
        setattr(sys.modules[module], name, cls)
        yield cls


class Call:
    """Pickles as the call of a function, which itself may be such a call."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        raise AssertionError("only pickled, never called")


def weights(prefix=""):
    return OrderedDict(
        (prefix + name, torch.arange(6.0) + i) for i, name in enumerate(["conv1.weight", "fc.bias"])
    )


def assert_weights(actual, expected=None):
    expected = expected or weights()
    assert type(actual) is dict
    assert list(actual) == list(expected)
    for name, tensor in actual.items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, expected[name])


def save(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def released_config(node, depth=3):
    """A config as yacs makes it: nested, and with a state that holds sets."""
    config = node(EMBED_DIM=24)
    if depth:
        config = node(NAME="acmix_swin", LAYERS=[2, 2], MODEL=released_config(node, depth - 1))
    config.__dict__.update({"__immutable__": True, "__deprecated_keys__": {"OLD"}})
    return config


def message_of(path):
    with pytest.raises(CheckpointError) as caught:
        load_released(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) <= 2
    assert "weights_only" not in message
    return message


# Released files


def test_official_swin_checkpoint():
    path = GOLDEN / "official_swin_mini.pth"
    loaded = load_released(path)

    assert len(loaded) == 88
    assert {"patch_embed.proj.weight", "head.weight"} <= loaded.keys()
    assert all(type(tensor) is torch.Tensor for tensor in loaded.values())
    assert not any(name.partition(".")[0] == "yacs" for name in sys.modules)
    config = read_checkpoint(path)["config"]
    assert config["MODEL"]["SWIN"]["EMBED_DIM"] == 24


@FORMATS
def test_swin_container(tmp_path, zipped):
    with foreign(YACS, dict) as node:
        content = {"model": weights(), "epoch": 3, "config": released_config(node)}
        path = save(tmp_path / "swin.pth", content, zipped)

    assert_weights(load_released(path))
    read = read_checkpoint(path)
    assert read["config"]["MODEL"]["MODEL"]["MODEL"] == {"EMBED_DIM": 24}
    assert read["config"]["LAYERS"] == [2, 2]
    assert vars(read["config"]) == {}
    assert "yacs" not in sys.modules


@FORMATS
def test_resnet_run(tmp_path, zipped):
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    content = {
        "epoch": 90,
        "state_dict": weights("module."),
        "best_acc1": torch.tensor(76.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    path = save(tmp_path / "model_best.pth.tar", content, zipped)

    assert_weights(load_released(path))
    read = read_checkpoint(path)
    assert read["epoch"] == 90
    assert read["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    assert read["scheduler"]["milestones"] == Counter([30, 60])


@FORMATS
def test_mmengine_file(tmp_path, zipped):
    with foreign(BUFFER) as buffer:
        history = Call(
            buffer,
            state={
                "_log_history": np.arange(3.0),
                "_max_length": 10,
                "_statistics_methods": {"mean": Call(getattr, buffer, "mean")},
            },
        )
        hub = {"log_scalars": {"loss": history}, "runtime_info": {"iter": 7, "lr": np.float64(0.1)}}
        content = {"meta": {"epoch": 1}, "state_dict": weights(), "message_hub": hub}
        path = save(tmp_path / "epoch_1.pth", content, zipped)

    assert_weights(load_released(path))
    read = read_checkpoint(path)
    assert read["message_hub"] == {"log_scalars": {}, "runtime_info": {"iter": 7}}
    assert read["meta"] == {"epoch": 1}


@FORMATS
def test_arguments_and_paths_are_left_out(tmp_path, zipped):
    arguments = argparse.Namespace(lr=0.1, output=Path("out"), nested=argparse.Namespace(a=1))
    content = {"model": weights(), "args": arguments, "path": tmp_path, "epoch": 3}
    path = save(tmp_path / "run.pth", content, zipped)
    assert_weights(load_released(path))
    assert read_checkpoint(path).keys() == {"model", "epoch"}


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numpy_values_of_either_major_version(tmp_path, core):
    with foreign(f"numpy.{core}.multiarray.scalar") as scalar:
        path = save(tmp_path / "a.pth", {"state_dict": weights(), "acc": Call(scalar, b"\0" * 8)})

    assert read_checkpoint(path).keys() == {"state_dict"}


def test_placeholders_leave_every_container(tmp_path):
    with foreign(BUFFER) as buffer:
        plain = {"list": [1], "tuple": (2, [3]), "set": {4}, "dict": {"a": 5}}
        content = {
            "list": [1, buffer()],
            "tuple": (2, buffer(), [buffer(), 3]),
            "set": {4, buffer()},
            "dict": {"a": 5, buffer(): 6, "class": buffer},
        }
        path = save(tmp_path / "a.pth", content)

    assert read_checkpoint(path) == plain


def test_shared_and_circular_containers(tmp_path):
    circle = {"weight": torch.ones(1)}
    circle["self"] = [circle]
    doubled = []
    for _ in range(60):
        doubled = [doubled, doubled]
    path = save(tmp_path / "a.pth", {"circle": circle, "doubled": doubled})

    read = read_checkpoint(path)

    assert read["circle"]["self"][0] is read["circle"]
    assert read["doubled"][0] is read["doubled"][1]


def test_map_location(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    assert read_checkpoint(path, "meta")["fc.bias"].device.type == "meta"
    assert read_checkpoint(str(path))["fc.bias"].device.type == "cpu"


def test_foreign_names_are_allowed_only_while_reading(tmp_path):
    read_checkpoint(save(tmp_path / "a.pth", weights()))
    message_of(save(tmp_path / "b.pth", {"payload": Call(os.system, "true")}))
    allowed = [entry[1] for entry in get_safe_globals() if isinstance(entry, tuple)]
    assert not {YACS, BUFFER, "builtins.getattr", "numpy.ndarray"} & set(allowed)


@FORMATS
def test_torch_set_to_map_files_into_memory(tmp_path, zipped):
    settings = pytest.importorskip("torch.utils.serialization").config
    path = save(tmp_path / "a.pth", weights(), zipped)
    with settings.patch("load.mmap", True):
        assert_weights(load_released(path))


# Files that hide code


def attacks(sentinel):
    """Objects whose unpickling writes the sentinel, in any loader that runs what it is told."""
    touch = f"open({str(sentinel)!r}, 'w').close()"
    body = Call(getattr, torch._utils._rebuild_tensor, "__globals__")
    return {
        "os.system": Call(os.system, f"touch {sentinel}"),
        "exec": Call(builtins.exec, touch),
        "open": Call(builtins.open, str(sentinel), "w"),
        "getattr of an imported module": Call(
            Call(getattr, Call(builtins.__import__, "os"), "system"), f"touch {sentinel}"
        ),
        "getattr of an allowed function": Call(
            Call(getattr, Call(Call(getattr, body, "get"), "__builtins__"), "get"), "exec"
        ),
        "getattr alone": Call(Call(getattr, sentinel.name, "format"), touch),
    }


ATTACKS = list(attacks(Path("sentinel")))


@contextmanager
def hidden_in_value(payload):
    yield {"model": weights(), "payload": payload}


@contextmanager
def hidden_in_config(payload):
    with foreign(YACS, dict) as node:
        yield {"model": weights(), "config": node(MODEL=node(payload=payload))}


@contextmanager
def hidden_in_config_state(payload):
    with foreign(YACS, dict) as node:
        config = node(NAME="acmix")
        config.__dict__["__deprecated_keys__"] = payload
        yield {"model": weights(), "config": config}


@contextmanager
def hidden_in_buffer_arguments(payload):
    with foreign(BUFFER) as buffer:
        yield {"state_dict": weights(), "log": Call(buffer, [payload])}


@contextmanager
def hidden_in_buffer_state(payload):
    with foreign(BUFFER) as buffer:
        yield {"state_dict": weights(), "log": Call(buffer, state={"_log_history": payload})}


@contextmanager
def hidden_in_array(payload):
    with foreign("numpy.ndarray") as array:
        yield {"state_dict": weights(), "log": Call(array, (1,), payload)}


@contextmanager
def hidden_in_tensor(payload):
    arguments = (torch.FloatTensor, (), {"hook": payload})
    rebuilt = Call(torch._tensor._rebuild_from_type_v2, payload, *arguments)
    yield {"state_dict": OrderedDict(weights(), extra=rebuilt)}


@contextmanager
def hidden_in_arguments(payload):
    yield {"model": weights(), "args": argparse.Namespace(lr=0.1, payload=payload)}


@contextmanager
def hidden_in_path(payload):
    yield {"model": weights(), "path": Call(type(Path()), payload)}


HIDEOUTS = [
    hidden_in_arguments,
    hidden_in_path,
    hidden_in_value,
    hidden_in_config,
    hidden_in_config_state,
    hidden_in_buffer_arguments,
    hidden_in_buffer_state,
    hidden_in_array,
    hidden_in_tensor,
]


@FORMATS
@pytest.mark.parametrize("hide", HIDEOUTS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_hidden_code_is_refused(tmp_path, monkeypatch, attack, hide, zipped):
    # An environment variable of torch that switches the protection off elsewhere.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sentinel = tmp_path / "sentinel"
    with hide(attacks(sentinel)[attack]) as content:
        path = save(tmp_path / "evil.pth", content, zipped)

    message = message_of(path)

    assert "refused, nothing was run" in message
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("attack", "name"),
    # Its module has another name from Python 3.12 on.
    [("os.system", "posix.system"), ("exec", "exec"), ("open", f"{open.__module__}.open")],
)
@pytest.mark.skipif(os.name != "posix", reason="names of functions differ")
def test_refusal_names_the_function(tmp_path, attack, name):
    path = save(tmp_path / "evil.pth", {"payload": attacks(tmp_path / "sentinel")[attack]})
    assert f"asks for '{name}'," in message_of(path)


def test_traceback_does_not_advise_to_drop_the_protection(tmp_path):
    path = save(tmp_path / "evil.pth", {"payload": Call(os.system, "true")})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "weights_only` argument" not in "".join(traceback.format_exception(caught.value))


def test_payloads_are_live(tmp_path):
    """The attacks above are real: a plain unpickler falls for them."""
    sentinel = tmp_path / "sentinel"
    pickle.loads(pickle.dumps(attacks(sentinel)["exec"]))
    assert sentinel.exists()


@FORMATS
def test_getattr_reads_no_attribute(tmp_path, zipped):
    content = {"state_dict": weights(), "got": Call(getattr, torch._utils._rebuild_tensor, "x")}
    path = save(tmp_path / "a.pth", content, zipped)
    assert read_checkpoint(path).keys() == {"state_dict"}


# Files that are no checkpoints


def test_missing_file_suggests_neighbours(tmp_path):
    save(tmp_path / "swin_tiny.pth", weights())
    (tmp_path / "swin_tinny.pth").mkdir()
    assert "does not exist; did you mean 'swin_tiny.pth'?" in message_of(tmp_path / "swin_tny.pth")
    assert "does not exist: check the path" in message_of(tmp_path / "other")
    assert "nor does its folder" in message_of(tmp_path / "nowhere" / "swin_tiny.pth")


def test_directory(tmp_path):
    assert "is a directory" in message_of(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in message_of(tmp_path / "pipe")


def test_unreadable(tmp_path, monkeypatch):
    path = save(tmp_path / "a.pth", weights())

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in message_of(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"epoch,loss\n1,0.5\n", "a text file"),
        ("größe: 7\n".encode() * 40, "a text file"),
        (b"\n<!DOCTYPE html><html><title>404</title>", "an HTML page"),
        (b"<html><body>sign in</body>", "an HTML page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG image"),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":{}}        ', "safetensors"),
        (bytes(range(64)), "a file of another kind"),
        (b"\x80\x04\x95", "damaged, most likely cut short"),
        (b"\x80\x04\x95" + bytes(100), "damaged or no file of torch.save"),
        (b"\x80\x02}q\x00.", "Reason: Invalid magic number"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_files(tmp_path, content, kind, suffix):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    assert kind in message_of(path)


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "text")
    assert "another kind of zip archive" in message_of(tmp_path / "a.zip")
    np.savez(tmp_path / "a.npz", weight=np.ones(3))
    assert "another kind of zip archive" in message_of(tmp_path / "a.npz")


def test_torchscript_archive(tmp_path, recwarn):
    path = save(tmp_path / "a.pth", weights())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/constants.pkl", b"")
    assert "a TorchScript archive" in message_of(path)
    assert not recwarn.list


@FORMATS
def test_every_truncation_is_noticed(tmp_path, zipped):
    whole = save(tmp_path / "whole.pth", {"model": weights(), "epoch": 1}, zipped).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        message = message_of(path)
        assert "refused" not in message
        assert "again" in message or message.endswith("but a text file: pass a file of torch.save.")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flipped_bytes_end_in_a_dict_or_a_clear_error(tmp_path):
    whole = save(tmp_path / "whole.pth", {"model": weights(), "epoch": 1}).read_bytes()
    path = tmp_path / "flipped.pth"
    draw = random.Random(0)
    outcomes = Counter()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            outcomes[type(read_checkpoint(path))] += 1
        except CheckpointError:
            outcomes[CheckpointError] += 1
    assert outcomes.keys() == {dict, CheckpointError}


def test_nesting_too_deep_to_copy(tmp_path):
    # Written from parts, since pickling such a list already exceeds Python's recursion limit.
    path = save(tmp_path / "whole.pth", {})
    deep = tmp_path / "deep.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(deep, "w") as target:
        for name in source.namelist():
            nested = b"\x80\x02}X\x01\0\0\0a" + b"]" * 5000 + b"a" * 4999 + b"s."
            target.writestr(name, nested if name.endswith("data.pkl") else source.read(name))
    assert "recursion" in message_of(deep)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], "weights", None, 3])
def test_top_level_must_be_a_dictionary(tmp_path, content):
    message = message_of(save(tmp_path / "a.pth", content))
    assert f"of type {type(content).__name__}" in message


def test_top_level_placeholder(tmp_path):
    with foreign(BUFFER) as buffer:
        path = save(tmp_path / "a.pth", buffer())
    assert "holds no dictionary" in message_of(path)


# Weights within a checkpoint


@pytest.mark.parametrize(
    "checkpoint",
    [
        weights(),
        {"model": weights()},
        {"state_dict": weights(), "epoch": 1},
        {"model": weights(), "state_dict": {"other": torch.ones(1)}},
        {"model": "resnet50", "state_dict": weights()},
        weights("module."),
        {"model": weights("_orig_mod.")},
        {"state_dict": weights("module._orig_mod.")},
        weights("_orig_mod.module."),
    ],
)
def test_state_dict_of(checkpoint):
    assert_weights(state_dict_of(checkpoint))


def test_prefix_that_only_some_names_have_stays():
    mixed = {**weights("module."), "head.bias": torch.ones(1)}
    assert_weights(state_dict_of(mixed), mixed)


def test_weight_called_like_a_container():
    bare = {"model": torch.ones(2), "bias": torch.zeros(2)}
    assert_weights(state_dict_of(bare), bare)


def test_state_dict_of_gives_plain_tensors_that_share_memory():
    parameter = torch.nn.Parameter(torch.ones(3))
    picked = state_dict_of({"state_dict": {"weight": parameter}})["weight"]
    assert type(picked) is torch.Tensor
    assert not picked.requires_grad
    assert picked.data_ptr() == parameter.data_ptr()


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ({}, "holds no weights:"),
        ({"epoch": 3, "optimizer": {}}, "holds no weights but 'epoch', 'optimizer':"),
        ({"model": {}}, "holds no weights but 'model':"),
        (torch.ones(1), "holds no weights but is of type Tensor"),
        ({"model": {"a": torch.ones(1), "b": 3}}, "'b' of type int among its weights"),
        ({"a": torch.ones(1), "epoch": 3}, "'epoch' of type int among its weights"),
        ({"a": torch.ones(1), 7: torch.ones(1)}, "7 of type Tensor among its weights"),
    ],
)
def test_no_weights(checkpoint, said):
    with pytest.raises(CheckpointError) as caught:
        state_dict_of(checkpoint)
    assert said in str(caught.value)


def test_message_names_the_file_without_weights(tmp_path):
    assert "holds no weights" in message_of(save(tmp_path / "a.pth", {"epoch": 3}))


def test_checkpoint_error_is_an_input_error():
    assert issubclass(CheckpointError, InputError)
    assert issubclass(InputError, ValueError)


# Files of safetensors


def test_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    library.save_file(dict(weights("module.")), path, {"format": "pt", "classes": "["})
    assert_weights(load_released(path))
    assert read_checkpoint(path)["meta"] == {}
    assert read_checkpoint(path, "meta")["state_dict"]["module.fc.bias"].device.type == "meta"


def test_damaged_header_of_safetensors_is_named(tmp_path):
    pytest.importorskip("safetensors.torch")
    (tmp_path / "a.pth").write_bytes(b"\x10\0\0\0\0\0\0\0" + b'{"a":{}}        ')
    assert "a damaged safetensors file" in message_of(tmp_path / "a.pth")


def test_every_truncation_of_safetensors_is_noticed(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    library.save_file(dict(weights()), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert re.search("again|pass a file", message_of(tmp_path / "cut"))
