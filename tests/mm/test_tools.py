"""The training and testing commands, as a user runs them."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

import acmix_swin  # noqa: F401  registers the backbone
from acmix import load_released
from acmix.mm import load_weights
from acmix.mm.parsers import test_parser as parser_of_test
from acmix.mm.settings import load_config
from runs import assert_same_end
from support import GOLDEN, ROOT, run_tool

DIGITS = {
    "resnet": "acmix-resnet26-narrow_1xb64_digits-32px",
    "san": "acmix-san10-narrow_1xb64_digits-32px",
    "pvt": "acmix-pvt-nano_1xb64_digits-32px",
    "swin": "acmix-swin-nano_1xb64_digits-32px",
}
# A run small enough for a test: 128 training and 40 test images.
SMALL = [
    "train_dataloader.dataset.indices=128",
    "val_dataloader.dataset.indices=40",
    "test_dataloader.dataset.indices=40",
]


def top1(output):
    return float(re.findall(r"accuracy/top1: ([\d.]+)", output)[-1])


def train_digits(project, cwd, *arguments, epochs=2, **options):
    return run_tool(
        project,
        "train",
        f"configs/{DIGITS[project]}.py",
        "--cfg-options",
        *SMALL,
        f"train_cfg.max_epochs={epochs}",
        *arguments,
        cwd=cwd,
        **options,
    )


@pytest.fixture(scope="module", params=DIGITS)
def trained(request, tmp_path_factory):
    """A project, the folder it was trained from, and what the training printed."""
    cwd = tmp_path_factory.mktemp(request.param)
    result = train_digits(request.param, cwd)
    return request.param, cwd, result.stdout


@pytest.mark.slow
def test_training_leaves_plain_checkpoints_logs_and_the_best_score(trained):
    project, cwd, output = trained
    folder = cwd / "work_dirs" / DIGITS[project]
    checkpoint = torch.load(folder / "epoch_2.pth", weights_only=True)
    assert checkpoint["meta"]["epoch"] == 2
    assert checkpoint["message_hub"]["log_scalars"]
    assert list(folder.glob("best_accuracy_top1_epoch_*.pth"))
    assert list(folder.glob("*/vis_data/events.out.tfevents.*"))
    assert not list(folder.glob("*.partial"))
    assert re.search(r"eta: \d", output)
    best = checkpoint["message_hub"]["runtime_info"]["best_score"]
    assert f"best top-1 {best:.2f} %" in output
    assert f"top-1 {top1(output):.2f} % at the end" in output


@pytest.mark.slow
def test_testing_reproduces_the_score_from_the_file(trained, tmp_path):
    project, cwd, output = trained
    checkpoint = cwd / "work_dirs" / DIGITS[project] / "epoch_2.pth"
    config = f"configs/{DIGITS[project]}.py"
    arguments = [
        "--cfg-options",
        *SMALL,
        "--out",
        tmp_path / "metrics.json",
        "--out-item",
        "metrics",
    ]
    result = run_tool(project, "test", config, checkpoint, *arguments, cwd=tmp_path)
    assert top1(result.stdout) == top1(output)
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy/top1"] == pytest.approx(
        top1(output), abs=1e-3
    )


@pytest.mark.slow
def test_resume_continues_a_stopped_run(trained):
    project, cwd, output = trained
    result = train_digits(project, cwd, "--resume", epochs=3)
    assert "resumed epoch: 2, iter: 4" in result.stdout
    assert "Epoch(val) [3]" in result.stdout
    assert "Epoch(val) [2]" not in result.stdout
    final = cwd / "work_dirs" / DIGITS[project] / "epoch_3.pth"
    steps = torch.load(final, weights_only=True)["optimizer"]["state"]
    assert {int(state["step"]) for state in steps.values() if "step" in state} == {6}


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    for folder, epochs in (("whole", (2,)), ("halves", (1, 2))):
        (tmp_path / folder).mkdir()
        for last in epochs:
            # One schedule for both: the run is stopped, not planned shorter.
            train_digits(
                "resnet",
                tmp_path / folder,
                "param_scheduler=None",
                *(["--resume"] if last > 1 and len(epochs) > 1 else []),
                epochs=last,
            )
    folders = [tmp_path / name / "work_dirs" / DIGITS["resnet"] for name in ("halves", "whole")]
    assert_same_end(*folders, "epoch_2.pth")


@pytest.mark.slow
def test_predictions_and_flips(trained, tmp_path):
    project, cwd, _ = trained
    checkpoint = cwd / "work_dirs" / DIGITS[project] / "epoch_2.pth"
    config = ROOT / project / "configs" / f"{DIGITS[project]}.py"
    flags = ["--out", tmp_path / "predictions.pkl", "--tta", "--amp", "--work-dir", tmp_path]
    output = run_tool(
        project, "test", config, checkpoint, "--cfg-options", *SMALL, *flags, cwd=tmp_path
    ).stdout
    with (tmp_path / "predictions.pkl").open("rb") as file:
        predictions = pickle.load(file)
    assert len(predictions) == 40
    surely = possibly = 0
    for sample in predictions:
        scores, label = sample["pred_score"], int(sample["gt_label"])
        best = scores == scores.max()  # in half precision there may be several
        possibly += int(best[label])
        surely += int(best[label] and best.sum() == 1)
    assert surely <= round(top1(output) * 40 / 100) <= possibly


@pytest.mark.slow
def test_a_folder_of_own_images_trains_and_its_pictures_show_what_was_predicted(folder, tmp_path):
    config = "configs/acmix-resnet26_1xb32_imagefolder.py"
    options = ["--cfg-options", *folder_options(folder)]
    run_tool("resnet", "train", config, *options, "--work-dir", "work", cwd=tmp_path)
    checkpoint = tmp_path / "work" / "epoch_1.pth"
    assert_has_three_classes(checkpoint)
    flags = ["--show-dir", tmp_path / "pictures", "--work-dir", "test"]
    run_tool("resnet", "test", config, checkpoint, *flags, *options, cwd=tmp_path)
    pictures = sorted(path for path in (tmp_path / "pictures").rglob("*") if path.is_file())
    assert len(pictures) == 6
    images = sorted((folder / "val").glob("*/*.png"))
    for picture, image in zip(pictures, images, strict=True):
        drawn = Image.open(picture).convert("RGB")
        plain = Image.open(image).convert("RGB").resize(drawn.size)
        difference = np.abs(np.asarray(drawn, float) - np.asarray(plain, float))
        assert difference.max() > 100, "nothing is drawn"


@pytest.mark.slow
def test_training_on_two_processes_is_resumed_exactly(tmp_path):
    flags = ["param_scheduler=None", "--launcher", "pytorch"]
    for folder, epochs in (("whole", [3]), ("halves", [1, 3])):
        (tmp_path / folder).mkdir()
        for last in epochs:
            resume = ["--resume"] if last > epochs[0] else []
            cwd = tmp_path / folder
            result = train_digits("swin", cwd, *flags, *resume, epochs=last, processes=2)
            assert f"Epoch(val) [{last}]" in result.stdout
    folders = [tmp_path / name / "work_dirs" / DIGITS["swin"] for name in ("halves", "whole")]
    assert_same_end(*folders, "epoch_3.pth")
    # 128 images, 64 on each of two processes at once: one iteration an epoch.
    assert torch.load(folders[0] / "epoch_3.pth", weights_only=True)["meta"]["iter"] == 3
    alone = train_digits("swin", tmp_path / "halves", "--resume", epochs=4)
    assert "of 2 processes, and this run has 1; it goes on, but not exactly" in alone.stdout


def save_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder in ImageNet's layout, with 1,000 classes of one image."""
    root = tmp_path_factory.mktemp("imagenet")
    for label in range(1000):
        for split in ("train", "val"):
            save_image(root / split / f"n{label:08d}" / "image.jpg", label)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "config"),
    [
        ("swin", "acmix-swin-tiny_8xb128_in1k"),
        ("pvt", "acmix-pvt-tiny_8xb128_in1k"),
        ("san", "acmix-san10_8xb32_in1k"),
        ("resnet", "acmix-resnet26_8xb32_in1k"),
    ],
)
def test_imagenet_config_runs_end_to_end(project, config, imagenet, tmp_path):
    options = [f"data_root={imagenet}", "train_cfg.max_epochs=1"]
    if project != "san":
        # The warm-up of several epochs has no place in one.
        options += ["param_scheduler.0.end=1", "param_scheduler.1.begin=0"]
    for split, count in (("train", 4), ("val", 3), ("test", 3)):
        options += [
            f"{split}_dataloader.{key}"
            for key in (f"dataset.indices={count}", "batch_size=2", "num_workers=0")
        ]
    config = f"configs/{config}.py"
    result = run_tool(project, "train", config, "--cfg-options", *options, cwd=tmp_path)
    assert "Epoch(val) [1][2/2]" in result.stdout
    checkpoint = next(tmp_path.glob("work_dirs/*/epoch_1.pth"))
    tested = run_tool(project, "test", config, checkpoint, "--cfg-options", *options, cwd=tmp_path)
    assert top1(tested.stdout) == top1(result.stdout)


@pytest.fixture
def folder(tmp_path):
    """Three classes of the user's own."""
    for name in ("cat", "dog", "owl"):
        for split in ("train", "val"):
            for seed in range(2):
                save_image(tmp_path / "pets" / split / name / f"{seed}.png", seed)
    return tmp_path / "pets"


def folder_options(folder):
    sizes = [
        f"{split}_dataloader.{key}"
        for split in ("train", "val", "test")
        for key in ("batch_size=2", "num_workers=0")
    ]
    return [
        f"data_root={folder}",
        *sizes,
        "train_cfg.max_epochs=1",
        "optim_wrapper.accumulative_counts=1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "config"),
    [
        ("swin", "acmix-swin-tiny_1xb32_imagefolder"),
        ("pvt", "acmix-pvt-tiny_1xb32_imagefolder"),
        ("san", "acmix-san10_1xb32_imagefolder"),
    ],
)
def test_a_folder_of_own_images_trains(project, config, folder, tmp_path):
    options = ["--cfg-options", *folder_options(folder)]
    run_tool(project, "train", f"configs/{config}.py", *options, cwd=tmp_path)
    assert_has_three_classes(next(tmp_path.glob("work_dirs/*/epoch_1.pth")))


def assert_has_three_classes(checkpoint):
    weights = torch.load(checkpoint, weights_only=True)
    assert weights["state_dict"]["head.fc.weight"].shape[0] == 3


@pytest.mark.slow
def test_an_unreadable_image_is_named(folder, tmp_path):
    bad = folder / "train" / "owl" / "0.png"
    bad.write_bytes(b"not an image")
    config = "configs/acmix-resnet26_1xb32_imagefolder.py"
    for workers in (0, 1):
        options = [*folder_options(folder), f"train_dataloader.num_workers={workers}"]
        result = run_tool(
            "resnet", "train", config, "--cfg-options", *options, cwd=tmp_path, check=False
        )
        assert result.returncode == 2
        assert result.stderr.strip().splitlines()[-1] == (
            f"error: image {bad} can't be decoded; repair it or remove it from the data"
        )


@pytest.mark.slow
def test_the_wrong_class_count_is_named_before_training(folder, tmp_path):
    config = "configs/acmix-resnet26_1xb32_imagefolder.py"
    options = [*folder_options(folder), "model.head.num_classes=5"]
    result = run_tool(
        "resnet", "train", config, "--cfg-options", *options, cwd=tmp_path, check=False
    )
    assert result.returncode == 2
    assert "error: model.head.num_classes=5: the training data have 3 classes; set" in result.stderr
    assert not list(tmp_path.glob("work_dirs/*/*.pth"))


@pytest.mark.slow
def test_a_released_checkpoint_is_tested_directly(tmp_path):
    released = GOLDEN / "official_swin_mini.pth"
    options = [
        "model.backbone.arch.embed_dims=24",
        "model.backbone.arch.num_heads=[2,4]",
        "model.backbone.window_size=7",
        "model.head.in_channels=48",
        *SMALL,
    ]
    config = f"configs/{DIGITS['swin']}.py"
    flags = ["--out", tmp_path / "predictions.pkl"]
    result = run_tool(
        "swin", "test", config, released, *flags, "--cfg-options", *options, cwd=tmp_path
    )
    assert "but not used" not in result.stdout
    with (tmp_path / "predictions.pkl").open("rb") as file:
        tested = torch.stack([sample["pred_score"] for sample in pickle.load(file)])
    arguments = [config, str(released), "--cfg-options", *options]
    cfg = load_config(ROOT / "swin", parser_of_test().parse_args(arguments))
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor}).eval()
    load_weights(model, load_released(released), "released", complete=True)
    images = DATASETS.build(cfg.test_dataloader.dataset)
    batch = default_collate([images[i] for i in range(len(images))])
    with torch.no_grad():
        expected = torch.stack([sample.pred_score for sample in model.test_step(batch)])
    assert tested.shape == (40, 10)
    torch.testing.assert_close(tested, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_the_other_project_is_refused(trained, tmp_path):
    project, cwd, _ = trained
    other = {"resnet": "swin", "san": "resnet", "pvt": "san", "swin": "pvt"}[project]
    checkpoint = cwd / "work_dirs" / DIGITS[project] / "epoch_2.pth"
    result = run_tool(
        other, "test", f"configs/{DIGITS[other]}.py", checkpoint, cwd=tmp_path, check=False
    )
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    # SAN and ResNet share the name of a layer, so something of the one fits the other.
    assert re.search("give (a checkpoint of this model|the configured model's checkpoint)", last)
