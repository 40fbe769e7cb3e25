"""``cvlab explain``: where in an image a torchvision or timm network's decision comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cv_core.checks import check_choice, nearest
from cv_core.cli.errors import BadUse

if TYPE_CHECKING:
    from cv_core.explain.attribution import Explainer
    from torch import Tensor, nn

explain_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_ON_LAYER = ("grad-cam", "grad-cam++", "layer-cam", "score-cam")
METHODS = (
    *_ON_LAYER,
    "gradients",
    "input-x-gradient",
    "integrated-gradients",
    "smooth-grad",
    "occlusion",
    "rollout",
    "gradient-rollout",
)


@explain_app.command("explain")
def explain(
    model: Annotated[
        str, typer.Argument(help="A classifier of torchvision or timm; timm/NAME asks for timm's.")
    ],
    image: Annotated[Path, typer.Argument(help="A picture; its middle is cut out and scaled.")],
    method: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(METHODS)}; repeatable.")
    ] = None,
    target: Annotated[int | None, typer.Option(help="A class; the decision by default.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="For the CAMs: the last layer with maps by default.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A state dict: .safetensors, or .pt of plain tensors.")
    ] = None,
    classes: Annotated[int, typer.Option(help="How many classes the weights are for.")] = 1000,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explanations"),
) -> None:
    """Draw where in an image a network's decision comes from.

    For example `cvlab explain resnet18 cat.jpg --weights resnet18.pt --method occlusion`. Nothing
    is downloaded: without --weights the network is random.
    """
    import torch

    methods = list(dict.fromkeys(method or ["grad-cam"]))
    with _complaints():
        for name in methods:
            check_choice("explain", "--method", name, METHODS)
        _check_folder(out)
        picture = _open(image)
        network = _build(model, classes)
        if weights is not None:
            _load(network.model, weights)
        pixels = network.crop(picture)
        inputs = network.normalized(pixels)
        if set(methods) & set(_ON_LAYER) and layer is None:
            layer = _last_maps(network.model, inputs)
        with torch.no_grad():
            logits = network.model(inputs)[0]
        chosen = int(logits.argmax()) if target is None else target
        maps = {}
        for name in methods:
            explainer = _explainer(name, network.model, layer, (inputs.shape[2], inputs.shape[3]))
            with _waiting(name):
                maps[name] = explainer.attribute(inputs, chosen)
    if weights is None:
        typer.echo(f"{model} has random weights (no --weights): the maps show no knowledge.")
    share = float(logits.softmax(0)[chosen])
    what = "decision" if target is None else "target"
    typer.echo(
        f"{what}: class {chosen}, logit {float(logits[chosen]):.3f}, probability {share:.3f}"
    )
    if set(methods) & set(_ON_LAYER):
        typer.echo(f"layer: {layer}")
    for path in _draw(pixels, maps, out, image.stem, title=f"class {chosen} ({share:.2f})"):
        typer.echo(str(path))


@contextmanager
def _complaints() -> Iterator[None]:
    """Turn what the libraries refuse into one line for the user."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise BadUse(str(error)) from error


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


# ---------------------------------------------------------------------------- network and picture


@dataclass(frozen=True)
class Network:
    """A classifier, and what its images have to look like.

    Args:
        model: In evaluation mode.
        size: Height and width of its images.
        mean: Of its training images, by channel.
        std: Their standard deviations.
    """

    model: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def crop(self, picture: Any) -> Tensor:
        """Return the middle of a picture at the network's size, ``(1, 3, H, W)`` in [0, 1]."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        height, width = self.size
        fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 255.0

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return what the network is given."""
        mean, std = (pixels.new_tensor(value).view(1, -1, 1, 1) for value in (self.mean, self.std))
        return (pixels - mean) / std


def _check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made, before the maps are."""
    whole = out.absolute()
    exists = next(path for path in (whole, *whole.parents) if path.exists())
    if not exists.is_dir():
        raise BadUse(f"--out {out}: {exists} is no folder.")


def _open(path: Path) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError as error:
        raise BadUse(f"IMAGE {path} is no picture that Pillow can read.") from error
    except OSError as error:
        raise BadUse(f"IMAGE {path}: {error.strerror or error}.") from error


def _build(name: str, classes: int) -> Network:
    """Return a network with random weights, the same in every call."""
    from cv_core.checks import check_integer
    from torchvision import models

    check_integer("explain", "--classes", classes, low=1)
    known = models.list_models(module=models)
    if name in known:
        return _torchvision(name, classes)
    timm_name = name.removeprefix("timm/")
    wanted = f"MODEL {name!r} is not torchvision's; looking for it in timm"
    from cv_core.optional import require

    timm = require("timm", package="cv-attention", extra="timm", purpose=wanted)
    if timm.is_model(timm_name.partition(".")[0]):
        return _timm(timm, timm_name, classes)
    close = nearest(timm_name, dict.fromkeys([*known, *timm.list_models()]))
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise BadUse(f"MODEL {name!r} is neither torchvision's nor timm's{hint}")


def _torchvision(name: str, classes: int) -> Network:
    from cv_core.random import seeded
    from torchvision import models

    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    with seeded(0, name):
        model = models.get_model(name, weights=None, num_classes=classes, **options)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    side = int(preset.crop_size[0])
    return Network(model.eval(), (side, side), tuple(preset.mean), tuple(preset.std))


def _timm(timm: Any, name: str, classes: int) -> Network:
    from cv_core.random import seeded

    try:
        with seeded(0, name):
            model = timm.create_model(name, pretrained=False, num_classes=classes)
    except RuntimeError as error:  # the part of the name behind a dot
        raise BadUse(f"MODEL {name!r}: {error}") from error
    config = timm.data.resolve_data_config(model=model)
    height, width = config["input_size"][1:]
    return Network(model.eval(), (height, width), config["mean"], config["std"])


def _load(model: nn.Module, path: Path) -> None:
    """Load a state dict; a pickle may hold tensors and plain containers, and no code."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    states: Any
    try:
        if path.suffix == ".safetensors":
            states = load_file(path)
        else:
            states = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadUse(f"--weights {path}: {error.strerror or error}.") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadUse(f"--weights {path} is no file of plain tensors.") from error
    if isinstance(states, dict):  # a checkpoint keeps them under a name
        states = next((states[key] for key in ("state_dict", "model") if key in states), states)
    if not isinstance(states, dict) or not _is_states(states):
        raise BadUse(f"--weights {path} holds no state dict.")
    if problem := _misfit(model, states):
        raise BadUse(f"--weights {path} do not fit {type(model).__name__}: {problem}.")
    model.load_state_dict(states)


def _misfit(model: nn.Module, states: dict[str, Tensor]) -> str:
    """Say in one line what keeps a state dict from being the network's; nothing if it fits."""
    own = model.state_dict()
    wrong = [key for key in own if key in states and own[key].shape != states[key].shape]
    found = {
        "missing": [key for key in own if key not in states],
        "unknown": [key for key in states if key not in own],
        "of another shape (another --classes?)": wrong,
    }
    return ", ".join(
        f"{len(keys)} tensors are {what}, such as {keys[0]!r}"
        for what, keys in found.items()
        if keys
    )


def _is_states(states: dict[Any, Any]) -> bool:
    from torch import Tensor

    return bool(states) and all(isinstance(value, Tensor) for value in states.values())


# --------------------------------------------------------------------------------------- the maps


def _explainer(name: str, model: nn.Module, layer: str | None, size: tuple[int, int]) -> Explainer:
    from cv_core.explain import attribution, cams, smoothing, transformers

    build: dict[str, Callable[..., Explainer]] = {
        "grad-cam": attribution.GradCAM,
        "grad-cam++": cams.GradCAMPlusPlus,
        "layer-cam": cams.LayerCAM,
        "score-cam": cams.ScoreCAM,
        "gradients": attribution.InputGradients,
        "input-x-gradient": smoothing.InputXGradient,
        "integrated-gradients": attribution.IntegratedGradients,
        "smooth-grad": lambda net: smoothing.SmoothGrad(attribution.InputGradients(net)),
        "occlusion": lambda net: attribution.Occlusion(net, window=max(1, min(size) // 8)),
        "rollout": transformers.AttentionRollout,
        "gradient-rollout": transformers.GradientRollout,
    }
    if name not in _ON_LAYER:
        return build[name](model)

    def reshape(output: Tensor) -> Tensor:
        if output.ndim == 3:
            return transformers.reshape_tokens(model, size)(output)
        if output.ndim != 4:
            shape = tuple(output.shape)
            raise ValueError(f"--layer {layer} has no maps: its output has shape {shape}.")
        return _channels_first(output, size)

    return build[name](model, layer, reshape=reshape)


def _channels_first(output: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps as ``(B, C, h, w)``; those of Swin and its like have their channels last."""
    height, width = size
    _, first, second, third = output.shape
    last = second * width != third * height and first * width == second * height
    return output.permute(0, 3, 1, 2) if last else output


def _last_maps(model: nn.Module, inputs: Tensor) -> str:
    """Return the last layer with maps; in a transformer, what the last attention is given.

    Behind the last attention only the class token reaches the head: the patches have no gradient.
    """
    import torch
    from cv_core.explain.transformers import reshape_tokens
    from torch import Tensor

    outputs: list[tuple[str, Any]] = []  # in the order of computation, kept so that ids stay
    before_attention = ""

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: outputs.append((name, output))

    def attend(_module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal before_attention
        made = [name for name, output in outputs if args and output is args[0]]
        before_attention = made[0] if made else before_attention

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    attending = [name for name, module in model.named_modules() if _attends(name, module)]
    for name in attending:
        hooks.append(model.get_submodule(name).register_forward_pre_hook(attend))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    size = (inputs.shape[2], inputs.shape[3])
    to_maps = reshape_tokens(model, size)
    runs = [name for name, _ in outputs]
    for name, output in reversed(outputs):
        if runs.count(name) > 1 or not name or not isinstance(output, Tensor):
            continue
        if output.ndim == 3 and output.shape[1] > 1:
            if before_attention:
                return before_attention
            with suppress(ValueError):  # tokens that no attention mixes
                to_maps(output)
                return name
        # inside attention, four axes are those of heads and tokens
        inside = any(name.startswith(f"{other}.") for other in attending)
        if output.ndim == 4 and not inside and _channels_first(output, size)[0, 0].numel() > 1:
            return name
    raise BadUse("no layer of the network has maps; name one with --layer.")


def _attends(name: str, module: nn.Module) -> bool:
    """Tell attention by its class or its name; classes such as ConViT's GPSA say nothing."""
    words = (type(module).__name__.lower(), name.rpartition(".")[2])
    return "attention" in words[0] or "attn" in words[0] or words[1] == "attn"


# ---------------------------------------------------------------------------------- the pictures


def _draw(
    pixels: Tensor, maps: dict[str, Tensor], out: Path, stem: str, *, title: str
) -> list[Path]:
    """Write one picture per method, and one that shows several side by side."""
    import numpy as np
    from PIL import Image

    from cv_attention.overlays import explanation_grid, overlay

    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, item in maps.items():
        path = out / f"{stem}-{name}.png"
        drawn = np.round(overlay(pixels[0], item[0]) * 255.0).astype(np.uint8)
        Image.fromarray(drawn).save(path)
        paths.append(path)
    if len(maps) > 1:
        path = out / f"{stem}-all.png"
        explanation_grid(pixels, maps, titles=[title]).savefig(path, dpi=150)
        paths.append(path)
    return paths
