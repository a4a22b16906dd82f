"""When checkpoints are written, which of them are kept, and which a run can go on from."""

import re
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from acmix.errors import InputError
from acmix.mm.files import PARTIAL, write_text


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, but nothing is deleted before what replaces it is on the disk.

    After every validation the checkpoint of the same step is written again: it then says that the
    validation is done, and what the best score is. What a resumed checkpoint says of other files
    counts only for files of this run's own folder.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Step of the last checkpoint; None outside of training.
        self._saved_step: int | None = None

    def candidates(self, runner) -> list[Path]:
        """Checkpoints of the run's folder that hold a training state, the newest first."""
        own = self._files(runner, self.filename_tmpl)
        return sorted(own, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def before_train(self, runner) -> None:
        """Take over what is kept, and clear what a stopped run left."""
        self._saved_step = -1
        if runner.resumed_from is not None:
            self._adopt(runner, Path(runner.resumed_from))
        if is_main_process():
            for template in (self.filename_tmpl, "best_*_" + self.filename_tmpl):
                _remove(self._files(runner, template + PARTIAL))
        super().before_train(runner)

    def after_val_epoch(self, runner, metrics: dict) -> None:
        """Save the best checkpoint, then that of this step again, then delete the former best."""
        if self._saved_step is None:
            return
        step = runner.epoch if self.by_epoch else runner.iter
        replaced = [
            self._save_if_best(runner, step, key, rule, metrics)
            for key, rule in self._scores(metrics)
        ]
        replaced = [path for path in replaced if path is not None]
        if self._saved_step == step or (replaced and self.last_ckpt is not None):
            meta = dict(epoch=runner.epoch, iter=runner.iter, validated=True)
            self._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():
            _remove(path for path in replaced if str(path) not in self._best(runner).values())

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        hub = runner.message_hub
        kept = [number for number in getattr(self, "keep_ckpt_ids", ()) if number != step]
        kept.append(step)
        # With the ones that go next: if the process ends before that, a resumed run does it.
        if self.max_keep_ckpts > 0:
            hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir, name))
        hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta={"validated": False, **meta},
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._saved_step = step
        if is_main_process():
            write_text(Path(runner.work_dir, "last_checkpoint"), self.last_ckpt)
        if self.max_keep_ckpts > 0:
            self._prune(runner, kept)

    def _scores(self, metrics: dict) -> list[tuple[str, str]]:
        """Names of the scores that choose a best checkpoint, with their rules."""
        if not self.save_best or not metrics:
            return []
        if "auto" in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        for key in self.key_indicators:
            if key not in metrics:
                raise InputError(
                    f"default_hooks.checkpoint.save_best={key!r}: validation gives "
                    f"{', '.join(metrics)}; name one of those"
                )
        return list(zip(self.key_indicators, self.rules, strict=True))

    def _save_if_best(self, runner, step: int, key: str, rule: str, metrics: dict) -> Path | None:
        """Save the weights if this score is the best so far; the path that they replace or are."""
        hub, suffix = runner.message_hub, self._suffix(key)
        best = hub.runtime_info.get(f"best_score{suffix}", self.init_value_map[rule])
        if metrics[key] is None or not self.is_better_than[key](metrics[key], best):
            return None
        name = f"best_{key}_{self.filename_tmpl.format(step)}".replace("/", "_")
        path = Path(self.out_dir, name)
        former = hub.runtime_info.get(f"best_ckpt{suffix}", path)
        hub.update_info(f"best_score{suffix}", metrics[key])
        hub.update_info(f"best_ckpt{suffix}", str(path))
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=False,
            save_param_scheduler=False,
            meta=dict(epoch=runner.epoch, iter=runner.iter),
            by_epoch=False,
            backend_args=self.backend_args,
        )
        runner.logger.info(f"best {key} so far, {metrics[key]:0.4f}: saved to {path}")
        return Path(former)

    def _adopt(self, runner, resumed: Path) -> None:
        """Take over what a checkpoint says of other files, if those are in this run's folder."""
        hub, folder = runner.message_hub, self._folder(runner)
        at_home = resumed.resolve().parent == folder.resolve()
        hub.runtime_info.pop("last_ckpt", None)
        kept = hub.runtime_info.pop("keep_ckpt_ids", [])
        if at_home and self.max_keep_ckpts > 0:
            self._prune(runner, kept)
        for name, value in self._best(runner).items():
            path = folder / Path(value).name
            template = f"best_*_{self.filename_tmpl}"
            if at_home and path in self._files(runner, template):
                hub.update_info(name, str(path))
            else:
                runner.logger.warning(
                    f"{value}: the best checkpoint of the resumed run is not in {folder}; "
                    "the best is looked for anew"
                )
                hub.pop_info(name)
                hub.runtime_info.pop(name.replace("best_ckpt", "best_score"), None)
        if at_home and is_main_process():
            self._clear_best(runner)
            write_text(Path(runner.work_dir, "last_checkpoint"), str(resumed))

    def _clear_best(self, runner) -> None:
        """Remove best checkpoints that a better one replaced, of each score that has one."""
        best = self._best(runner)
        for key in self.key_indicators if self.save_best else ():
            if current := best.get(f"best_ckpt{self._suffix(key)}"):
                files = self._files(runner, f"best_{key}_{self.filename_tmpl}".replace("/", "_"))
                _remove(path for path in files if path != Path(current))

    def _prune(self, runner, kept: list[int]) -> None:
        """Remove the oldest of the kept checkpoints until there are no more than wanted."""
        old, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
        if is_main_process():
            folder = self._folder(runner)
            _remove(folder / self.filename_tmpl.format(step) for step in old)
        self.keep_ckpt_ids = kept
        runner.message_hub.update_info("keep_ckpt_ids", kept)

    def _suffix(self, key: str) -> str:
        return "" if len(self.key_indicators) == 1 else f"_{key}"

    @staticmethod
    def _best(runner) -> dict[str, str]:
        """The best checkpoints that the message hub knows, by their names there."""
        info = runner.message_hub.runtime_info
        return {name: path for name, path in info.items() if name.startswith("best_ckpt")}

    def _folder(self, runner) -> Path:
        """Where the checkpoints go; ``out_dir`` itself says so only once training began."""
        if self._saved_step is not None and self.out_dir and hasattr(self, "file_client"):
            return Path(self.out_dir)
        own = self.out_dir is None or str(self.out_dir) == runner.work_dir
        return Path(runner.work_dir) if own else Path(self.out_dir, Path(runner.work_dir).name)

    def _files(self, runner, template: str) -> list[Path]:
        """Files of the run's folder that have such a name, with any number for each ``{}``."""
        parts = re.split(r"(\{[^}]*\}|\*)", template)
        wild = {"*": ".+"}
        pattern = "".join(
            wild.get(part, r"\d+" if part.startswith("{") else re.escape(part)) for part in parts
        )
        folder = self._folder(runner)
        entries = folder.iterdir() if folder.is_dir() else ()
        return [path for path in entries if re.fullmatch(pattern, path.name) and path.is_file()]


def _remove(paths) -> None:
    for path in paths:
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
