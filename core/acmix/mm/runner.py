"""MMEngine's runner with safe, atomic checkpoints that fit the model or are refused."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, broadcast_object_list, is_distributed
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from acmix.errors import CheckpointError, InputError
from acmix.mm.admission import admit_training_state, admit_weights, class_names
from acmix.mm.checkpoint_hook import SafeCheckpointHook
from acmix.mm.classes import ClassesHook
from acmix.mm.explain import unwritable
from acmix.mm.files import whole_file
from acmix.mm.finite import FiniteHook
from acmix.mm.launch import LaunchRecord, launcher
from acmix.mm.loaders import repeatable
from acmix.mm.plain import PlainCheckpointHook
from acmix.mm.process_state import process_state, unwrapped
from acmix.mm.rates import RatesHook
from acmix.mm.read import read_anywhere
from acmix.mm.resume_hook import ResumeHook
from acmix.mm.saved_settings import fit_optimizer, fit_schedulers
from acmix.mm.sync_batchnorm import synchronise
from acmix.mm.weights import load_weights

# What stands in for parts of MMEngine, by their names there.
_LOOPS = {"EpochBasedTrainLoop": "ResumableEpochLoop", "IterBasedTrainLoop": "ResumableIterLoop"}
_HOOKS = {"CheckpointHook": "SafeCheckpointHook", "VisualizationHook": "PicturesHook"}


@RUNNERS.register_module()
class ACmixRunner(Runner):
    """Runner that reads weights of any origin, writes whole checkpoints, and resumes exactly.

    It also runs the ``pytorch`` launcher on machines without a GPU (gloo), where MMEngine asks
    for CUDA.

    Attributes:
        resumed_from: The checkpoint that the run goes on from, if it does.
        resumed_state: What was taken from it, until all of it is restored.
        process_states: What every process adds to the checkpoint that is being saved.
        loaded_classes: Names of the classes of the weights that were loaded, if they are known.
    """

    def __init__(self, *args, **kwargs) -> None:
        self._weights_must_fit = False
        self.process_states: list[dict] = []
        self.resumed_from: str | None = None
        self.resumed_state: dict | None = None
        self.loaded_classes: tuple[str, ...] | None = None
        super().__init__(*args, **kwargs)
        hooks = ClassesHook(), FiniteHook(), RatesHook(), ResumeHook(), PlainCheckpointHook()
        for hook in hooks:
            self.register_hook(hook)

    def train(self) -> nn.Module:
        """Train, from the beginning or from where the run stopped.

        Processes that torchrun started again go on from what this launch saved last.

        Raises:
            CheckpointError: The run is to go on, and none of its checkpoints can be read.
        """
        launchers = [name for name in all_gather_object(launcher()) if name is not None]
        if self._resume or launchers:
            self._choose_checkpoint(launchers)
        try:
            return super().train()
        except OSError as error:
            if Path(self.log_dir).is_dir():
                raise
            raise InputError(
                f"work_dir={self.work_dir}: it was removed during the run; go on with --resume if "
                "its checkpoints are still somewhere, or start anew"
            ) from error

    def test(self) -> dict:
        """Test; the checkpoint must fill the whole model."""
        self._weights_must_fit = True
        return super().test()

    def val(self) -> dict:
        """Validate; the checkpoint must fill the whole model."""
        self._weights_must_fit = True
        return super().val()

    def load_or_resume(self) -> None:
        """Load weights, or all that the run needs to go on from the chosen checkpoint."""
        if not self._resume:
            super().load_or_resume()
        elif self.resumed_from is not None:
            self.resume(self.resumed_from)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Go on from a checkpoint of this project, which has a training state."""
        self._resume = True
        if self.resumed_state is None:
            self._admit(filename)
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = False,
        revise_keys: list | None = None,
    ) -> dict:
        """Read a checkpoint, released, plain or our own, and load its weights with a report.

        Returns:
            What was taken from it: its weights, or the training state if the run is resumed.

        Raises:
            CheckpointError: The file is no checkpoint, hides code, or fits another model.
        """
        if self._resume:
            taken, complete = self._fitted_state(filename), True
        else:
            content = read_anywhere(filename, map_location)
            self.loaded_classes = class_names(content)
            taken, complete = admit_weights(content, filename), strict or self._weights_must_fit
        model = unwrapped(self.model)
        target = unwrapped(model.module) if isinstance(model, BaseTTAModel) else model
        if self._resume or "ema_state_dict" in taken:
            self._call_load_hooks(taken, filename)
            load_weights(target, taken["state_dict"], filename, complete=complete)
        else:
            load_weights(target, taken["state_dict"], filename, complete=complete)
            # Of any origin before; hooks expect the names of this model.
            self._call_load_hooks({"state_dict": model.state_dict()}, filename)
        self._has_loaded = True
        return taken

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        *args,
        **kwargs,
    ) -> None:
        """Write a checkpoint beside its place and move it there when it is whole, on the disk.

        Raises:
            InputError: It can't be written; the previous file of this name is untouched.
        """
        if save_optimizer:
            own = process_state(self.model, self.optim_wrapper, self.world_size)
            self.process_states = all_gather_object(own)
        arguments = (file_client_args, save_optimizer, *args)
        if self.rank == 0 and "://" not in str(out_dir):
            path = Path(out_dir, filename)
            try:
                with whole_file(path) as partial:
                    super().save_checkpoint(out_dir, partial.name, *arguments, **kwargs)
            except OSError as error:
                raise unwritable(path, error) from error
        else:
            super().save_checkpoint(out_dir, filename, *arguments, **kwargs)
        self.process_states = []

    def register_hook(self, hook: Hook | dict, priority: str | int | None = None) -> None:
        """Register a hook, ours in place of MMEngine's where there is one."""
        if isinstance(hook, dict):
            hook = {**hook, "type": _replaced(hook["type"], _HOOKS)}
        super().register_hook(hook, priority)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop, ours in place of MMEngine's."""
        if isinstance(loop, dict):
            loop = dict(loop)
            if "type" not in loop:
                names = ("IterBasedTrainLoop", "EpochBasedTrainLoop")
                loop["type"] = names[bool(loop.pop("by_epoch"))]
            loop["type"] = _replaced(loop["type"], _LOOPS)
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader whose samples depend on the seed and their place alone."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        return repeatable(Runner.build_dataloader(dataloader, seed, diff_rank_seed), seed)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up processes and seeds; without a GPU, processes talk through gloo."""
        on_cpu = not torch.cuda.is_available()
        if on_cpu and self._launcher == "pytorch" and not is_distributed():
            dist.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes, also those without a GPU."""
        if torch.cuda.is_available() or not self.distributed or model_wrapper_cfg is not None:
            return super().wrap_model(model_wrapper_cfg, model)
        synchronise(model, ordinary=self.cfg.get("sync_bn") is not None)
        return MMDistributedDataParallel(
            model,
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get("find_unused_parameters", False),
        )

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale learning rates with the samples of a step, accumulated ones included."""
        if auto_scale_lr is None or not auto_scale_lr.get("enable"):
            return
        loader, several = self._train_dataloader, isinstance(optim_wrapper, OptimWrapperDict)
        size = loader["batch_size"] if isinstance(loader, dict) else loader.batch_size
        for wrapper in optim_wrapper.values() if several else [optim_wrapper]:
            count, base = wrapper._accumulative_counts, auto_scale_lr["base_batch_size"]
            samples = self.world_size * size * count
            for group in wrapper.param_groups:
                group["lr"] *= samples / base
            self.logger.info(
                f"Learning rates are multiplied by {samples / base:g}: they are for {base} "
                f"samples, and a step has {samples} ({size} x {self.world_size} processes x "
                f"{count} batches)"
            )

    def _call_load_hooks(self, taken: dict, filename: str) -> None:
        try:
            self.call_hook("after_load_checkpoint", checkpoint=taken)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{filename}: its averaged weights are of another model; give one of this model"
            ) from error

    def _choose_checkpoint(self, launchers: list[str]) -> None:
        """Find and read what the run goes on from, if it does."""
        # The first process chooses, as the others might see the files at another moment.
        choice: list = [None, None]
        if self.rank == 0:
            try:
                choice[0] = self._newest_of_launch(launchers) if launchers else None
                if choice[0] is None and self._resume:
                    choice[0] = self._first_intact()
            except InputError as error:
                choice[1] = error
        broadcast_object_list(choice)
        path, problem = choice
        if problem is not None:
            raise problem
        if path is None:
            if self._resume:
                self.logger.info("Nothing to resume: a fresh start")
            return
        if "://" not in path and not Path(path).is_file():
            raise InputError(
                f"{path}: not there for process {self.rank}; let work_dir be a folder that all "
                "machines share"
            )
        self.logger.info(f"Resuming from {path}")
        self._resume = True
        if self.resumed_state is None:
            self._admit(path)

    def _admit(self, path: str | Path) -> None:
        """Take the training state and the seed of a checkpoint, before loaders are built."""
        content = read_anywhere(str(path))
        self.resumed_state = admit_training_state(content, str(path))
        self.loaded_classes, self.resumed_from = class_names(content), str(path)
        seed = self.resumed_state["meta"]["seed"]
        if seed is not None:
            self._randomness_cfg["seed"] = seed
            self.set_randomness(**self._randomness_cfg)

    def _first_intact(self) -> str | None:
        """The given checkpoint, or the newest of the run's folder that can be read."""
        if self._load_from is not None:
            return str(self._load_from)
        return self._newest(self._candidates())

    def _newest_of_launch(self, launchers: list[str]) -> str | None:
        """The newest checkpoint that this launch wrote before its processes were started again."""
        candidates = self._candidates()
        written = LaunchRecord(Path(self.work_dir)).enter(launchers, candidates)
        if written is None:
            return None
        return self._newest([path for path in candidates if path.name in written])

    def _candidates(self) -> list[Path]:
        hook = next((h for h in self.hooks if isinstance(h, SafeCheckpointHook)), None)
        return hook.candidates(self) if hook else []

    def _newest(self, candidates: list[Path]) -> str | None:
        """The first of these that can be read; the others are named in the log."""
        refused = []
        for path in candidates:
            try:
                self._admit(path)
            except InputError as error:
                refused.append(str(error))
                self.logger.warning(f"Passed over: {error}")
            else:
                return str(path)
        if refused:
            raise CheckpointError(
                f"{self.work_dir}: none of its {len(refused)} checkpoints can be read; remove them "
                f"to start anew (the newest: {refused[0]})"
            )
        return None

    def _fitted_state(self, filename: str) -> dict:
        """The training state that was chosen, fitted to this run's optimiser and schedulers."""
        taken = dict(self.resumed_state or {})
        taken["optimizer"] = fit_optimizer(taken["optimizer"], self.optim_wrapper, filename)
        if "param_schedulers" in taken and self.param_schedulers is not None:
            saved = taken["param_schedulers"]
            taken["param_schedulers"] = fit_schedulers(saved, self.param_schedulers, filename)
        # MMEngine compares it with that of the data; the names are compared by a hook of ours.
        dataset_meta = getattr(self.train_dataloader.dataset, "metainfo", None)
        taken["meta"] = {**taken["meta"], "dataset_meta": dataset_meta}
        self.resumed_state = {name: taken[name] for name in ("meta", "processes") if name in taken}
        return taken


def _replaced(kind: str | type, names: dict[str, str]) -> str | type:
    name = kind if isinstance(kind, str) else kind.__name__
    return names.get(name.removeprefix("mmengine."), kind)
