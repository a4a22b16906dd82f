"""Checkpoints behind addresses: fetched whole, compared with what their names promise, kept."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.registry import MODELS

from acmix import CheckpointError
from acmix.mm.checks import check_checkpoint
from acmix.mm.download import download
from acmix.mm.read import read_anywhere
from acmix_swin import ACmixSwinTransformer
from runs import StopHook, run, tiny_config
from support import GOLDEN
from weights_files import build, write_released_swin

ARCH = dict(embed_dims=24, depths=[2, 2], num_heads=[2, 4])


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; of those that are called ``cut`` only a half."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, directory=self.folder, **kwargs)

    def do_GET(self):
        self.asked.append(self.path)
        path = Path(self.folder, self.path.lstrip("/"))
        if "cut" not in self.path or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "mmengine"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path):
    """Address of a server, its folder, and what it was asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Served", (Handler,), {"folder": str(folder), "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", folder, handler.asked
        served.shutdown()
        thread.join()


def put(folder, name, content=None):
    """A served file; of its digest, if the name has a place for one."""
    content = content or (GOLDEN / "official_swin_mini.pth").read_bytes()
    name = name.format(hashlib.sha256(content).hexdigest()[:8])
    (folder / name).write_bytes(content)
    return name


def initialised(source):
    init = dict(type="Pretrained", checkpoint=source)
    backbone = ACmixSwinTransformer(ARCH, out_indices=(1,), init_cfg=init)
    backbone.init_weights()
    return backbone


@pytest.mark.parametrize(
    "name", ["swin.pth", "swin-{}.pth", "swin-{}.pth.tar", "swin-20231130.pth"]
)
def test_init_cfg_takes_addresses(name, server):
    address, folder, _ = server
    backbone = initialised(f"{address}/{put(folder, name)}")
    expected = initialised(str(GOLDEN / "official_swin_mini.pth"))
    for key, weight in expected.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], weight), key


def test_init_cfg_takes_names_of_model_zoos(server, tmp_path, monkeypatch):
    address, folder, _ = server
    put(folder, "swin.pth")
    (tmp_path / "mmengine").mkdir()
    tables = {"released_swin": f"{address}/swin.pth"}
    (tmp_path / "mmengine" / "open_mmlab.json").write_text(json.dumps(tables))
    monkeypatch.setattr("mmengine.runner.checkpoint.get_torchvision_models", lambda: tables)
    for zoo in ("torchvision", "open-mmlab"):
        assert initialised(f"{zoo}://released_swin").stages
    with pytest.raises(CheckpointError, match="no such name; did you mean 'released_swin'"):
        initialised("open-mmlab://released_swim")


def test_init_cfg_takes_file_addresses(tmp_path):
    path = tmp_path / "a file.pth"
    path.write_bytes((GOLDEN / "official_swin_mini.pth").read_bytes())
    assert initialised(path.as_uri()).stages


def test_mmengines_loader_takes_them_too(server, tmp_path):
    address, folder, _ = server
    put(folder, "swin.pth")
    file = write_released_swin(tmp_path)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = build(file.model)
        load_checkpoint(model, f"{address}/swin.pth")
    with torch.no_grad():
        assert (model(file.image) - file.logits).abs().max() <= 1e-5


def test_load_from_takes_addresses(server, tmp_path):
    address, folder, asked = server
    cfg = tiny_config(tmp_path / "work", load_from=f"{address}/mine.pth")
    torch.save(MODELS.build(cfg.model).state_dict(), folder / "mine.pth")
    check_checkpoint(cfg)
    run(cfg, StopHook("before_train", 1))
    assert asked == ["/mine.pth"]


def test_a_file_is_fetched_once(server, cache):
    address, folder, asked = server
    names = [put(folder, "swin.pth"), put(folder, "swin-{}.pth")]
    for name in names * 2:
        read_anywhere(f"{address}/{name}")
    assert asked == [f"/{name}" for name in names]
    assert (cache / names[1]).is_file()
    assert not list(cache.rglob("*.pth.*"))


def test_equal_names_of_two_addresses_are_two_files(server):
    address, folder, _ = server
    for part in ("a", "b"):
        (folder / part).mkdir()
        torch.save({"weight": torch.full((1,), float(ord(part)))}, folder / part / "last.pth")
    read = [read_anywhere(f"{address}/{part}/last.pth")["weight"].item() for part in ("a", "b")]
    assert read == [97.0, 98.0]


@pytest.mark.parametrize("name", ["swin-01234567.pth", "swin-01234567.pth.tar"])
def test_a_file_that_is_not_what_its_name_says_is_refused(name, server, cache):
    address, folder, _ = server
    put(folder, name)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not what its name says: its SHA-256 begins"):
            read_anywhere(f"{address}/{name}")
    assert not list(cache.iterdir())


def test_a_damaged_file_of_the_cache_is_fetched_again(server, cache):
    address, folder, asked = server
    name = put(folder, "swin-{}.pth")
    read_anywhere(f"{address}/{name}")
    (cache / name).write_bytes(b"damaged")
    assert read_anywhere(f"{address}/{name}")["model"]
    assert len(asked) == 2


def test_what_does_not_come_whole_is_not_kept(server, cache):
    address, folder, _ = server
    put(folder, "cut.pth")
    with pytest.raises(CheckpointError, match=r"cut\.pth.*(bytes came|can't be fetched)"):
        download(f"{address}/cut.pth")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_what_can_not_be_fetched_is_said_in_a_line(server):
    address, _, _ = server
    with pytest.raises(
        CheckpointError, match="can't be fetched: File not found; check the address"
    ):
        read_anywhere(f"{address}/absent.pth")
    with pytest.raises(CheckpointError, match="names no file"):
        read_anywhere(address)
    with pytest.raises(CheckpointError, match="not fetched from ftp://"):
        read_anywhere("ftp://host/a.pth")


def test_no_code_of_an_address_is_run(server, tmp_path):
    address, folder, _ = server

    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"weight": torch.ones(1), "payload": Touch()}, folder / "evil.pth")
    for read in (read_anywhere, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match="refused, nothing was run"):
            read(f"{address}/evil.pth")
    assert not (tmp_path / "executed").exists()
