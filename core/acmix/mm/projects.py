"""What a project has beside its package: configs, metafile and tools, in a clone or installed."""

import importlib.util
from pathlib import Path

from mmpretrain.apis import ModelHub
from modelindex.load_model_index import load
from modelindex.models.Model import Model

from acmix.errors import InputError


class UntrainedModel(Model):
    """A model of a metafile that nobody has trained, so that it must not pass for a trained one."""

    @property
    def weights(self) -> None:
        """There are none.

        Raises:
            InputError: Always; MMPretrain asks for them where ``pretrained=True``.
        """
        raise InputError(
            f"{self.name}, pretrained=True: it has not been trained, so there are no weights; give "
            "pretrained=<file>, such as one that the authors released, or pretrained=False"
        )


def project_folder(package: str) -> Path:
    """Where the ``configs`` of a project are: ``.mim`` of a wheel, or the folder in the clone."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    packed = folder / ".mim"
    return packed if packed.is_dir() else folder.parent


def config_files(project: Path) -> list[Path]:
    """Configs of a project that a command takes, from its folder."""
    paths = sorted(path.relative_to(project) for path in project.glob("configs/**/*.py"))
    return [path for path in paths if "_base_" not in path.parts]


def register_models(package: str) -> None:
    """Have MMPretrain's ``list_models`` and ``get_model`` know the models of a project."""
    folder = project_folder(package)
    metafile = folder / "metafile.yml"
    if not metafile.is_file():  # the package alone was copied
        return
    ModelHub.register_model_index(metafile, config_prefix=folder)
    for model in load(str(metafile)).models:
        ModelHub._models_dict[model.name.lower()].__class__ = UntrainedModel
