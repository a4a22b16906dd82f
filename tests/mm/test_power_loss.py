"""Order of writing, flushing, renaming and removing, as a loss of power would leave the files."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from acmix.mm import files
from runs import run, tiny_config


@dataclass
class Disk:
    """What is certainly on the disk of a folder: files whose content and name were both flushed.

    Checks at every step that a checkpoint is not lost: nothing takes its place half written, none
    is removed before its successor is certain, and ``last_checkpoint`` names one that is.
    """

    folder: Path
    steps: list[str] = field(default_factory=list)
    flushed: dict[str, int] = field(default_factory=dict)  # sizes, by name
    renamed: dict[str, str] = field(default_factory=dict)
    certain: set[str] = field(default_factory=set)

    def watch(self, monkeypatch) -> None:
        """See the calls of this process from now on."""
        for name in ("fsync", "replace", "unlink"):
            self._before(monkeypatch, name, getattr(self, name))

    def _before(self, monkeypatch, name: str, look) -> None:
        real = getattr(os, name)

        def call(*args, **kwargs):
            look(*args)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path == self.folder:
            self.certain.update(self.renamed.values())
            self.renamed = {}
            self._last_checkpoint_is_there()
        elif path.parent == self.folder:
            self.flushed[path.name] = path.stat().st_size

    def replace(self, source: Path, target: Path) -> None:
        source, target = Path(source), Path(target)
        if target.parent == self.folder:
            written = source.stat().st_size
            assert self.flushed.pop(source.name, None) == written, f"{target.name} is half written"
            self.renamed[source.name] = target.name
            self.steps.append(f"write {target.name}")

    def unlink(self, path: Path) -> None:
        path = Path(path)
        if path.parent == self.folder and path.suffix == ".pth":
            assert not self.renamed, f"{self.renamed} may not be there when {path.name} is gone"
            self.certain.discard(path.name)
            kind = path.name.split("_")[0]
            assert any(name.startswith(kind) for name in self.certain), f"no {kind} but {path.name}"
            self._last_checkpoint_is_there()
            self.steps.append(f"remove {path.name}")

    def _last_checkpoint_is_there(self) -> None:
        if "last_checkpoint" in self.certain:
            named = Path((self.folder / "last_checkpoint").read_text()).name
            assert named in self.certain, f"last_checkpoint names {named}, which may not be there"


KEEP_ONE = {"default_hooks.checkpoint.max_keep_ckpts": 1}


def test_every_file_is_on_the_disk_before_what_it_replaces_goes(tmp_path, monkeypatch):
    disk = Disk(tmp_path)
    disk.watch(monkeypatch)
    # The second validation is better, whatever the weights: the first best file is replaced.
    scores = iter([1.0, 2.0])
    monkeypatch.setattr(
        "mmpretrain.evaluation.Accuracy.compute_metrics", lambda *_: {"top1": next(scores)}
    )
    run(tiny_config(tmp_path, **KEEP_ONE))
    first = "best_accuracy_top1_epoch_1.pth"
    second = first.replace("1.pth", "2.pth")
    assert disk.steps == [
        *("write epoch_1.pth", "write last_checkpoint"),
        *(f"write {first}", "write epoch_1.pth", "write last_checkpoint"),
        *("write epoch_2.pth", "write last_checkpoint", "remove epoch_1.pth"),
        *(f"write {second}", "write epoch_2.pth", "write last_checkpoint", f"remove {first}"),
    ]
    assert disk.certain == {second, "epoch_2.pth", "last_checkpoint"}


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_a_flush_that_is_left_out_is_noticed(missing, tmp_path, monkeypatch):
    flush = files._flush
    wanted = Path.is_dir if missing == "file" else Path.is_file
    monkeypatch.setattr(files, "_flush", lambda path: flush(path) if wanted(path) else None)
    Disk(tmp_path).watch(monkeypatch)
    with pytest.raises(AssertionError, match="half written" if missing == "file" else "may not be"):
        run(tiny_config(tmp_path, **KEEP_ONE))
