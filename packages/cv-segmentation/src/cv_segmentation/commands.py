"""``cvlab segment``: train a segmentation network on your pictures and masks, and use it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from cv_core.checks import check_choice, check_integer
from cv_core.cli.errors import BadUse

if TYPE_CHECKING:
    from cv_core.data.kinds import Segmentation
    from torch import Tensor

    from cv_segmentation.model import SegmentationModel
    from cv_segmentation.overlays import Palette

segment_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Give every pixel of a picture a class.\n\n"
        "`cvlab segment train photos` learns from photos/images and photos/masks, holds a part of "
        "them out and says how well that part is segmented; `cvlab segment predict runs/segment "
        "new.jpg` then segments other pictures."
    ),
)

_EXAMPLES = 4
_BACKGROUND = "background"

Step = Callable[[], object]
Describe = Callable[[str, int], object]


@segment_app.command("train")
def train_command(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with images/ and masks/ (or with train/ and test/ that hold these), "
            "folder:PATH?classes=a,b&ignore=255, or a data set of `cvlab data list`."
        ),
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="small (from scratch, no library), an encoder of segmentation-models-pytorch "
            "such as resnet18, or timm/NAME."
        ),
    ] = "small",
    decoder: Annotated[str, typer.Option(help="unet, fpn or deeplab.")] = "unet",
    weights: Annotated[
        str | None,
        typer.Option(help="Pretrained weights of the encoder, such as imagenet: downloaded."),
    ] = None,
    depth: Annotated[int, typer.Option(help="Halvings of the encoder.")] = 5,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes with commas between, label 0 first; by default those of "
            "classes.txt beside masks/, or numbers. Call label 0 background to leave it bare."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of the random crops, in pixels.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="The highest one, of AdamW.")] = 1e-3,
    window: Annotated[
        int, typer.Option(help="Larger pictures are predicted in overlapping windows.")
    ] = 1024,
    seed: Annotated[int, typer.Option(help="Of weights, order and crops.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    out: Annotated[
        Path, typer.Option(help="Folder for the network, its scores and examples.")
    ] = Path("runs/segment"),
) -> None:
    """Learn from pictures with masks; score the part that was held out.

    A mask is a picture of class indices with its picture's name: images/a.jpg, masks/a.png; grey or
    with a palette, 8 or 16 bits. 255 is not labelled, except in masks of only 0 and 255, where it
    is class 1. Of one folder 60 % train, 20 % choose the best epoch and 20 % are held out.

    An interrupted training goes on with the same command. For example

    `cvlab segment train photos --classes background,road,car --encoder resnet18 --epochs 50`
    """
    from cv_core.cli.interrupt import stoppable

    from cv_segmentation.training import TrainingOptions, train

    with _complaints():
        options = TrainingOptions(
            encoder=encoder,
            decoder=decoder,  # type: ignore[arg-type]  # checked where the network is built
            weights=weights,
            depth=depth,
            epochs=epochs,
            batch_size=batch_size,
            crop=crop,
            learning_rate=learning_rate,
            window=window,
            seed=seed,
        )
        _check_folder(out)
        chosen = _device(device)
        with _bar("looking at the data", None):
            found, checksum = _load(data, classes)
        ticks = (len(found.train) // batch_size or 1) + len(found.val)  # of an epoch
        with (
            stoppable(),
            _bar("training", epochs * ticks + len(found.test)) as (step, describe),
        ):
            model = train(
                found,
                options,
                out,
                checksum=checksum,
                device=chosen,
                tick=step,
                on_epoch=lambda row: describe(_row(row, epochs), round(row["epoch"]) * ticks),
            )
        _draw_examples(model, found, out / "examples", window)
    _print_scores(out)


@segment_app.command("predict")
def predict_command(
    model: Annotated[Path, typer.Argument(help="The folder that `cvlab segment train` wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    window: Annotated[
        int | None,
        typer.Option(help="Larger pictures are predicted in overlapping windows; as in training."),
    ] = None,
    flips: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--flips", help="Average over the four flips: slower, often better.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")] = Path("masks"),
) -> None:
    """Segment pictures of any size: for each a mask and an overlay.

    NAME.png holds class indices, with a palette so that viewers show colours; NAME-overlay.png
    shows them over the picture. For example

    `cvlab segment predict runs/segment holiday.jpg more-pictures --out masks`
    """
    from cv_core.cli.interrupt import stoppable

    with _complaints():
        _check_folder(out)
        network, notes = _open_model(model, _device(device))
        side = int(notes.get("window", 1024)) if window is None else window
        check_integer("segment", "--window", side, low=1)
        files = _pictures(images, out)
        out.mkdir(parents=True, exist_ok=True)
        palette = _palette(notes["classes"])
        failed = 0
        with stoppable(), _bar("predicting", len(files)) as (step, _):
            for name, file in files.items():
                failed += not _predict(network, file, out / name, palette, side, flips=flips)
                step()
    typer.echo(f"{len(files) - failed} masks and overlays in {out}")
    raise typer.Exit(int(failed > 0))


# ------------------------------------------------------------------------------- around the work


@contextmanager
def _complaints() -> Iterator[None]:
    """Turn what the libraries refuse into one line for the user."""
    try:
        yield
    except (ValueError, TypeError, ImportError, FileNotFoundError, FloatingPointError) as error:
        raise BadUse(str(error)) from error


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[tuple[Step, Describe]]:
    """Show a progress bar if the error stream is a terminal.

    Yields:
        What moves it by one, and what names it and says how much is done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield (lambda: None), (lambda _text, _done: None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield (
            lambda: progress.advance(task),
            lambda text, done: progress.update(task, description=text, completed=done),
        )


def _check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made, before the work is done."""
    whole = out.absolute()
    exists = next(path for path in (whole, *whole.parents) if path.exists())
    if not exists.is_dir():
        raise BadUse(f"--out {out}: {exists} is no folder.")


def _device(name: str) -> str:
    import torch

    check_choice("segment", "--device", name, ("auto", "cpu", "cuda"))
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise BadUse("--device cuda: torch finds no GPU here; --device cpu will do.")
    return "cuda" if there and name != "cpu" else "cpu"


# --------------------------------------------------------------------------------------- training


def _load(name: str, classes: str | None) -> tuple[Segmentation, str]:
    """Return the data and their checksum."""
    from cv_core.data import sources

    scheme, colon, _ = name.partition(":")
    if colon and scheme in sources.USER_SCHEMES:
        pass
    elif colon or Path(name).is_dir() or Path(name).name != name:  # a path, not a data set's name
        name = f"folder:{name}"
    if classes is not None:
        if not name.startswith("folder:"):
            raise BadUse(f"--classes names those of a folder; {name} has names of its own.")
        name += f"{'&' if '?' in name else '?'}classes={quote(classes, safe=',')}"
    sources.resolve(name)
    if sources.kind_of(name) != "Segmentation":
        layout = " It needs images/ and masks/." if name.startswith("folder:") else ""
        raise BadUse(f"DATA {name} is no set of pictures with masks.{layout}")
    data: Segmentation = sources.load(name)
    return data, sources.checksum(name)


def _row(row: Mapping[str, float], epochs: int) -> str:
    text = f"epoch {row['epoch']:.0f}/{epochs}, loss {row['loss']:.3f}"
    if "validation mIoU" in row:
        text += f", validation mIoU {row['validation mIoU']:.3f}"
    return text


def _print_scores(out: Path) -> None:
    import json

    from cv_segmentation.training import METRICS

    scores: dict[str, Any] = json.loads((out / METRICS).read_bytes())
    typer.echo(f"{scores['images']} held-out pictures: {scores['convention']}")
    for name in ("mIoU", "mean Dice", "pixel accuracy"):
        typer.echo(f"  {name}: {scores[name]:.3f}")
    for name, values in scores["classes"].items():
        said = "does not occur" if values["IoU"] is None else f"IoU {values['IoU']:.3f}"
        typer.echo(f"  {name}: {said}")
    typer.echo(f"network, {METRICS} and examples (picture, truth, prediction): {out}")


def _draw_examples(model: SegmentationModel, data: Segmentation, folder: Path, window: int) -> None:
    """Write some held-out pictures beside their truth and their prediction."""
    import numpy as np

    from cv_segmentation.overlays import overlay_mask

    folder.mkdir(exist_ok=True)
    palette = _palette(data.class_names)
    for number in range(min(_EXAMPLES, len(data.test))):
        image, truth = data.test[number]
        said = _labels(model, image, window)
        drawn = [
            overlay_mask(image, mask, palette, ignore_index=data.ignore_index)
            for mask in (truth, said)
        ]
        plain = np.broadcast_to(image.permute(1, 2, 0).numpy(), drawn[0].shape)
        _save_picture(folder / f"{number + 1}.png", np.concatenate([plain, *drawn], axis=1))


def _palette(names: list[str] | tuple[str, ...]) -> Palette:
    from cv_segmentation.palettes import class_palette

    return class_palette(len(names), bare_first=names[0] == _BACKGROUND)


# ------------------------------------------------------------------------------------- prediction


def _open_model(folder: Path, device: str) -> tuple[SegmentationModel, dict[str, Any]]:
    from cv_segmentation.model import load_model, read_notes

    notes = read_notes(folder)
    model = load_model(folder).to(device)
    names = notes.get("classes", [f"class {index}" for index in range(model.classes)])
    if not isinstance(names, list) or len(names) != model.classes or model.classes < 2:
        raise BadUse(f"MODEL {folder} must have at least two classes, and a name for each.")
    if model.in_channels not in (1, 3):
        raise BadUse(f"MODEL {folder} takes pictures of {model.in_channels} channels.")
    return model, {**notes, "classes": names}


def _pictures(paths: list[Path], out: Path) -> dict[str, Path]:
    """Return the pictures by the name that their mask will have."""
    found: dict[str, Path] = {}
    makers: dict[str, Path] = {}  # of each file that will be written
    for path in paths:
        if not path.exists():
            raise BadUse(f"IMAGES {path}: no such file or folder.")
        files = _inside(path)
        if not files:
            raise BadUse(f"IMAGES {path}: no picture.")
        for file in files:
            if file.stem in found:
                raise BadUse(
                    f"IMAGES {found[file.stem]} and {file} would have one mask {file.stem}.png; "
                    "predict them into two folders."
                )
            found[file.stem] = file
            for ending in ("", "-overlay"):
                target = f"{file.stem}{ending}.png"
                if makers.setdefault(target, file) is not file:
                    raise BadUse(
                        f"IMAGES {makers[target]} and {file} would both write {target}; predict "
                        "them into two folders."
                    )
    written = {(out / target).resolve() for target in makers}
    for file in found.values():
        if file.resolve() in written:
            raise BadUse(f"--out {out}: {file} would be overwritten.")
    return found


def _inside(path: Path) -> list[Path]:
    """Return the pictures in a folder, hidden ones left out, or the picture itself."""
    from cv_core.data.readers.folders import SUFFIXES

    folder = path.is_dir()
    files = [file for file in path.iterdir() if file.name[0] != "."] if folder else [path]
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


def _predict(
    model: SegmentationModel,
    file: Path,
    target: Path,
    palette: Palette,
    window: int,
    *,
    flips: bool,
) -> bool:
    """Write mask and overlay of a picture; return whether it could be read."""
    from cv_core.data.readers.pictures import decode_image
    from cv_core.data.root import CorruptData

    from cv_segmentation.overlays import overlay_mask
    from cv_segmentation.palettes import write_mask

    try:
        image = decode_image(file, channels="grey" if model.in_channels == 1 else "rgb")
    except CorruptData as error:
        sys.stderr.write(f"cvlab: left out: {error}\n")
        return False
    labels = _labels(model, image, window, flips=flips)
    write_mask(target.with_name(f"{target.name}.png"), labels, palette)
    _save_picture(
        target.with_name(f"{target.name}-overlay.png"), overlay_mask(image, labels, palette)
    )
    return True


def _labels(model: SegmentationModel, image: Tensor, window: int, *, flips: bool = False) -> Tensor:
    from cv_segmentation.inference import sliding_window, test_time_augmentation

    def scores(x: Tensor) -> Tensor:
        return sliding_window(model, x, window)

    x = image[None].to(model.head.weight.device)
    return (test_time_augmentation(scores, x) if flips else scores(x))[0].argmax(0).cpu()


def _save_picture(path: Path, pixels: Any) -> None:
    """Write an RGB image in [0, 1] whole or not at all."""
    import io

    import numpy as np
    from cv_core.files import write_atomically
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.round(pixels * 255.0).astype(np.uint8)).save(content, "PNG")
    write_atomically(path, content.getvalue())
