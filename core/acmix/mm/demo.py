"""The demo of every project: a page on this machine that says what a model sees in an image."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config

from acmix.analysis.drawing import Figure, as_svg
from acmix.analysis.page import figures_html
from acmix.analysis.plots import attention_figure, field_figure, paths_figure, rates_figure
from acmix.errors import InputError
from acmix.mm.analyze import analyze_images, read_images
from acmix.mm.explain import input_errors_explained
from acmix.mm.export import load_model
from acmix.mm.image_folder import reason_against
from acmix.mm.parsers import demo_parser
from acmix.mm.predict import find_device
from acmix.mm.predicting import Prediction, Predictor
from acmix.mm.settings import read_config

# Reached from this machine alone.
HOST = "127.0.0.1"
_TOP = 5


@input_errors_explained()
def demo(project: Path, argv: Sequence[str] | None = None) -> None:
    """Run ``tools/demo.py`` of a project, until it is interrupted.

    Args:
        project: Folder of the project, where configs are looked for besides the working directory.
        argv: Arguments; those of the process if ``None``.
    """
    args = demo_parser().parse_args(argv)
    import_gradio()
    device, cfg = find_device(args.device), read_config(project, args)
    model, classes = load_model(cfg, args.checkpoint)
    predictor = Predictor(cfg, model, classes, device, _TOP)
    page, options = build_page(cfg, predictor, Path(args.config).stem)
    try:
        page.launch(
            server_name=HOST,
            server_port=args.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            **options,
        )
    except OSError as error:
        raise InputError(f"--port {args.port}: it is taken; give another, or none") from error
    print(f"open {page.local_url} in a browser; Ctrl-C ends the demo", flush=True)
    page.block_thread()


def import_gradio() -> Any:
    """Import gradio, which then sends nothing anywhere.

    Raises:
        InputError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise InputError('the demo needs gradio; run pip install "acmix[demo]"') from error
    return gradio


def build_page(cfg: Config, predictor: Predictor, title: str) -> tuple[Any, dict[str, Any]]:
    """The page, and options of its launch.

    Args:
        cfg: The config, whose scope is the default one.
        predictor: Its model, on a device.
        title: The page's heading.
    """
    gradio = import_gradio()

    def show(image: str | None) -> tuple[dict[str, float] | None, str]:
        if image is None:
            return None, ""
        try:
            return answer(cfg, predictor, Path(image))
        except InputError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\nGive an image: what the model sees, and what its layers do.")
        with gradio.Row():
            image = gradio.Image(type="filepath", label="Image", sources=["upload", "clipboard"])
            scores = gradio.Label(num_top_classes=_TOP, label="What it sees")
        maps = gradio.HTML(padding=False)
        image.change(show, image, [scores, maps], api_name="show")
    # Fonts of the system, as others would be fetched.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return page, dict(theme=theme, footer_links=[], enable_monitoring=False, ssr_mode=False)


def answer(cfg: Config, predictor: Predictor, path: Path) -> tuple[dict[str, float], str]:
    """Best classes with their scores or shares of the area, and figures as HTML.

    Raises:
        InputError: The image can't be decoded.
    """
    if (reason := reason_against(path)) is not None:
        raise InputError(f"image {path.name}: {reason}; give another")
    (prediction,) = predictor([path])
    found = analyze_images(predictor.model, read_images(cfg, [path]), 1)
    (view,) = found.views
    drawn: list[tuple[str, Figure]] = [
        ("What each path adds, as its norm over channels", paths_figure(view.picture, view.paths)),
        ("What the last map sees", field_figure(found.field, found.sides)),
        ("How the layers weigh their paths", rates_figure(found.rates)),
    ]
    if view.attention:
        attention = attention_figure(view.picture, view.attention)
        drawn.insert(0, ("Where three queries look, the mean over heads", attention))
    figures = [(caption, as_svg(figure), "svg+xml") for caption, figure in drawn]
    return _scores(prediction), figures_html([*_pictures(predictor, prediction), *figures])


def _scores(prediction: Prediction) -> dict[str, float]:
    record = prediction.record
    if "areas" in record:
        return dict(list(record["areas"].items())[:_TOP])
    entries = record["classes"] if "classes" in record else record["objects"]
    # Of several objects of a class, the best.
    return {entry["class"]: entry["score"] for entry in reversed(entries)}


def _pictures(predictor: Predictor, prediction: Prediction) -> Iterator[tuple[str, bytes, str]]:
    """The image with boxes or masks, if there are any."""
    if "classes" not in prediction.record:
        with TemporaryDirectory() as folder:
            file = Path(folder, "drawn.png")
            predictor.draw(prediction, file)
            yield "What it found", file.read_bytes(), "png"
