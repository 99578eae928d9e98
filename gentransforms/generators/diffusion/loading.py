"""From a repository in diffusers layout to a pipeline, by the real loading code of diffusers, with errors that say what to do."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.unreadable import explain
from gentransforms.hub import models as hub
from gentransforms.paths import local_path
from gentransforms.wording import name_type, with_article

__all__ = [
    "BASES",
    "add_ip_adapter", "add_lora", "load_part", "load_pipeline", "load_processor", "load_vae", "pipeline_class", "rebuild",
    "stock_defaults", "vae_place",
]  # fmt: skip

# Pipelines whose components the sampling loop knows, and the one whose prompt encoding is used for them.
BASES = {
    "StableUnCLIPImg2ImgPipeline": "StableUnCLIPImg2ImgPipeline",
    "StableDiffusionImageVariationPipeline": "StableDiffusionImageVariationPipeline",
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "LatentConsistencyModelPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
}
_TINY_VAES = {"StableDiffusionXLPipeline": "madebyollin/taesdxl"}
_TINY_VAE = "madebyollin/taesd"  # of Stable Diffusion 1 and 2


def pipeline_class(source: hub.Source) -> str:
    """Return the class named in ``model_index.json``.

    Raises:
        WeightsError: if there is no such file, or it names a pipeline that no generator here can take.
    """
    name = hub.pipeline_class(source)
    if name is None:
        source.file(hub.PIPELINE_FILE)  # says why it cannot be had
    if name not in BASES:
        raise WeightsError(
            f"{source} holds {with_article(str(name))}: expected one of {', '.join(BASES)}; "
            "other kinds need a generator of their own (ImageGenerator)"
        )
    return str(name)


def load_pipeline(source: hub.Source, dtype: torch.dtype, class_name: str | None = None, variant: str | None = None, **passed: Any) -> Any:
    """Return the pipeline of a repository or folder, without its safety checker, whatever format its weights have.

    Args:
        source: where the files are.
        dtype: dtype of the loaded weights.
        class_name: class of the pipeline, if not the one that the repository names.
        variant: variant of the weight files; a part without such files is loaded from its plain ones.
        passed: components that are loaded already.

    Raises:
        WeightsError: if something is missing, damaged or of another kind.
    """
    import diffusers

    cls = getattr(diffusers, class_name or pipeline_class(source))
    if "safety_checker" in inspect.signature(cls.__init__).parameters:
        # It would check each image as a PIL image; what to train on is the user's choice.
        passed |= {"safety_checker": None, "requires_safety_checker": False}
    if "watermarker" in inspect.signature(cls.__init__).parameters:
        passed["add_watermarker"] = False
    _check_components(source, passed)
    kind = {} if variant is None else {"variant": variant}
    with _weights_errors(source, variant):
        pipe = cls.from_pretrained(_place(source), **_dtype(cls, dtype), **_options(source), **kind, **passed)
    _check_whole(source, pipe)
    return pipe


def load_part(cls: Any, source: hub.Source, dtype: torch.dtype, subfolder: str | None = None, variant: str | None = None) -> Any:
    """Return one model (a ControlNet, a VAE, a depth estimator) of a repository or folder.

    With `variant`, from the weight files of that variant where there are any, else from the plain ones.

    Raises:
        WeightsError: as `load_pipeline`.
    """
    folder = {"subfolder": subfolder} if subfolder else {}
    load = functools.partial(cls.from_pretrained, _place(source), **folder, **_dtype(cls, dtype), **_options(source))
    model = None
    if variant is not None:
        with contextlib.suppress(OSError):
            model = load(variant=variant)
    if model is None:
        with _weights_errors(source, variant, subfolder):
            model = load()
    _check_whole(source, model)
    return model


def load_processor(cls: Any, source: hub.Source, subfolder: str | None = None) -> Any:
    """Return an image processor of a repository or folder.

    Raises:
        WeightsError: as `load_pipeline`.
    """
    with _weights_errors(source):
        return cls.from_pretrained(_place(source), **({"subfolder": subfolder} if subfolder else {}), **_options(source))


def load_vae(choice: Any, base: str, dtype: torch.dtype, variant: str | None = None, **where: Any) -> nn.Module:
    """Return a VAE: a module as it is, ``"tiny"`` for the tiny autoencoder of the base, or one from a repository or folder."""
    import diffusers

    if isinstance(choice, nn.Module):
        return choice
    source = hub.Source(vae_place(choice, base), **where)
    with _weights_errors(source):
        folder = source.folder is not None and not (source.folder / "config.json").is_file()
        subfolder = "vae" if folder else None  # a whole pipeline's folder
        kind = json.loads(source.file("vae/config.json" if folder else "config.json").read_text()).get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise WeightsError(f"vae={choice!r}: {source} holds {with_article(kind)}: expected an AutoencoderKL or AutoencoderTiny")
    vae: nn.Module = load_part(getattr(diffusers, kind), source, dtype, subfolder, variant)
    return vae


def vae_place(choice: Any, base: str) -> Any:
    """Return the repository or folder of a VAE that was chosen for a pipeline; a module as it is."""
    return _TINY_VAES.get(base, _TINY_VAE) if isinstance(choice, str) and choice == "tiny" else choice


def add_ip_adapter(pipe: Any, choice: Sequence[str], variant: str | None = None, **where: Any) -> None:
    """Load an IP-Adapter, (repo, subfolder, weight_name) and optionally the folder of its image encoder, into the pipeline.

    The image encoder is loaded unless the pipeline has one, from its weight files of `variant` where there are any.

    Raises:
        ConfigError: if `choice` is something else, or the pipeline takes none.
        WeightsError: if it cannot be loaded.
    """
    if not isinstance(choice, list | tuple) or not 3 <= len(choice) <= 4 or not all(isinstance(part, str) for part in choice):
        raise ConfigError(
            f"ip_adapter={choice!r}: expected (repo, subfolder, weight_name), for example "
            "('h94/IP-Adapter', 'models', 'ip-adapter_sd15.safetensors'); a fourth entry names the image encoder's folder"
        )
    if not hasattr(pipe, "load_ip_adapter"):
        raise ConfigError(f"ip_adapter={tuple(choice)!r}: {name_type(pipe)} takes none: use a Stable Diffusion 1.5 or XL repository")
    repo, subfolder, weight_name = choice[:3]
    source = hub.Source(repo, **where)
    source.file(f"{subfolder}/{weight_name}" if subfolder else weight_name)  # its error names what is missing
    if getattr(pipe, "image_encoder", None) is None:
        from transformers import CLIPVisionModelWithProjection

        place = choice[3] if len(choice) == 4 else "image_encoder"
        folder = place if "/" in place or not subfolder else f"{subfolder}/{place}"
        pipe.register_modules(image_encoder=load_part(CLIPVisionModelWithProjection, source, pipe.unet.dtype, folder, variant))
    with _weights_errors(source):
        pipe.load_ip_adapter(_place(source), subfolder=subfolder, weight_name=weight_name, **_options(source))
        pipe.image_encoder.to(pipe.unet.dtype)


def add_lora(pipe: Any, choice: Any, **where: Any) -> None:
    """Load LoRAs and merge them into the weights.

    Args:
        pipe: a pipeline that takes LoRAs.
        choice: a repository, folder or file, or (repo, weight_name); or a mapping from several of these to their scales.
        where: of `hub.Source`.

    Raises:
        ConfigError: if `peft` is not installed, the pipeline takes none, or `choice` is something else.
        WeightsError: if one cannot be loaded.

    Example:
        >>> add_lora(pipe, {"your/style-lora": 0.8, "loras/film.safetensors": 0.5})  # doctest: +SKIP
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"lora={choice!r}: needs peft: pip install peft") from error
    scales: dict[Any, Any] = dict(choice) if isinstance(choice, Mapping) else {_hashable(choice): 1.0}
    sources = [_lora_source(key, choice, where) for key in scales]
    for scale in scales.values():
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ConfigError(f"lora={choice!r}: expected a number as the scale of each, not {scale!r}")
    if not hasattr(pipe, "load_lora_weights") or not scales:
        raise ConfigError(f"lora={choice!r}: " + ("no LoRA in it" if not scales else f"{name_type(pipe)} takes none"))
    names = [f"lora_{i}" for i in range(len(scales))]
    for name, (source, weight_name) in zip(names, sources, strict=True):
        kind = {"weight_name": weight_name} if weight_name else {}
        with _weights_errors(source), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
            pipe.load_lora_weights(_place(source), adapter_name=name, **kind, **_options(source))
            if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
                raise WeightsError(f"lora={choice!r}: {source} holds no weights for {name_type(pipe)}: it is for another base")
    with _weights_errors(sources[0][0]):
        pipe.set_adapters(names, [float(scale) for scale in scales.values()])
        pipe.fuse_lora(adapter_names=names)
        pipe.unload_lora_weights()


def _hashable(choice: Any) -> Any:
    return tuple(choice) if isinstance(choice, list) else choice


def _lora_source(key: Any, choice: Any, where: Mapping[str, Any]) -> tuple[hub.Source, str | None]:
    """Return where a LoRA is, and the name of its file where it has one."""
    parts: list[Any] = list(key) if isinstance(key, tuple) else [key]
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, str | Path) for part in parts):
        raise ConfigError(
            f"lora={choice!r}: expected a repository, folder or file, or (repo, weight_name); several as {{lora: scale, other: scale}}"
        )
    if len(parts) == 1 and (file := local_path(parts[0], "lora")).is_file():
        parts = [file.parent, file.name]
    repo, weight_name = (*parts, None)[:2]
    return hub.Source(repo, **where), None if weight_name is None else str(weight_name)


def rebuild(pipe: Any, **changes: Any) -> Any:
    """Return a pipeline of the base class with the same components, except the safety checker, and some of them replaced.

    The components stay as they are: the constructors of some pipelines rewrite old configurations of the scheduler and the
    UNet they are given (``steps_offset``, ``clip_sample``, ``sample_size``), which others, such as the ControlNet pipelines, do not.
    """
    import diffusers

    name = type(pipe).__name__
    if name not in BASES:
        raise WeightsError(f"pipe is {with_article(name)}: expected one of {', '.join(BASES)}")
    cls = getattr(diffusers, BASES[name])
    taken = set(inspect.signature(cls.__init__).parameters)
    given: dict[str, Any] = {**pipe.components, "safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
    if "force_zeros_for_empty_prompt" in pipe.config:
        given["force_zeros_for_empty_prompt"] = pipe.config["force_zeros_for_empty_prompt"]
    given |= changes
    parts = {name: value for name, value in given.items() if name in taken}
    configs = {name: vars(part)["_internal_dict"] for name, part in parts.items() if "_internal_dict" in getattr(part, "__dict__", {})}
    scheduler: Any = diffusers.DDIMScheduler
    modern = scheduler(steps_offset=1, clip_sample=False)  # one that no constructor rewrites, or warns of
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sample_size", category=FutureWarning)
        built = cls(**parts | {"scheduler": modern})
    built.register_modules(scheduler=parts["scheduler"])
    for name, config in configs.items():
        parts[name]._internal_dict = config
    built._rebuilt_from = _kind(pipe)
    return built


def stock_defaults(pipe: Any) -> tuple[int, float]:
    """Return the number of steps and the guidance scale that a call of a pipeline, or of the one it was rebuilt from, has by default.

    Example:
        >>> from diffusers import LatentConsistencyModelPipeline
        >>> stock_defaults(LatentConsistencyModelPipeline.__new__(LatentConsistencyModelPipeline))
        (4, 8.5)
    """
    parameters = inspect.signature(_kind(pipe).__call__).parameters
    return int(parameters["num_inference_steps"].default), float(parameters["guidance_scale"].default)


def _kind(pipe: Any) -> Any:
    return vars(pipe).get("_rebuilt_from", type(pipe))


def _place(source: hub.Source) -> str:
    return str(source.folder or source.name)


def _dtype(cls: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype to load in, by the name that this version of diffusers or transformers gives it without a warning."""
    from diffusers.pipelines import pipeline_utils

    new = cls.__module__.startswith("transformers") or hasattr(pipeline_utils, "_resolve_dtype")
    return {"dtype" if new else "torch_dtype": dtype}


def _options(source: hub.Source) -> dict[str, Any]:
    """Return where and how to fetch files, as arguments of diffusers and transformers."""
    if source.folder is not None:
        return {"local_files_only": True}
    return {name: value for name, value in source.options.items() if value is not None}


def _check_components(source: hub.Source, passed: Mapping[str, Any]) -> None:
    """Raise if a folder lacks a component that its ``model_index.json`` names and that is not in `passed`: diffusers names no component."""
    if source.folder is None:
        return
    index = json.loads(source.file(hub.PIPELINE_FILE).read_text())
    for name, value in index.items():
        named = isinstance(value, list) and len(value) == 2 and all(value) and name not in passed
        if named and not (source.folder / name).is_dir():
            raise WeightsError(
                f"{source}: not loadable: it has no folder {name!r}, which {hub.PIPELINE_FILE} names as its {value[1]}: fetch it again"
            )


def _check_whole(source: hub.Source, loaded: Any) -> None:
    """Raise if a model was left without some of its weights."""
    parts: Mapping[str, Any] = getattr(loaded, "components", None) or {"": loaded}
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        missing = [key for key, tensor in part.state_dict().items() if tensor.is_meta]
        if missing:
            what = name or type(part).__name__
            raise WeightsError(f"{source}: {what} lacks weights {missing[:3]}: the file is of another model, or damaged")


@contextlib.contextmanager
def _weights_errors(source: hub.Source, variant: str | None = None, subfolder: str | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError) as error:
        if isinstance(error, WeightsError | ConfigError):
            raise
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "weights_only" in str(error) or "Weights only load failed" in text:
            text = "a weight file holds other objects than tensors, which are not read, since they can run code"
        for path in _weight_files(source.folder):
            if path.stat().st_size < 1 << 16 and ("pointer" in (what := explain(path)) or "HTML" in what):
                raise WeightsError(f"{source}: {path.relative_to(source.folder or '')} cannot be read: {what}") from error
        others = sorted(_variants(source, subfolder) - {variant})
        if others and ("weights" in text or "file named" in text or "variant" in text):
            told = f"the variant {variant!r} is not there" if variant else "there are no plain weight files"
            raise WeightsError(f"{source}: {told}, only those of variant {', '.join(others)}: give variant={others[0]!r}") from error
        raise WeightsError(f"{source}: not loadable: {text.rstrip('.')}: fetch it again, or name another") from error


def _variants(source: hub.Source, subfolder: str | None) -> set[str]:
    """Return the variants of which a folder, or one downloaded from the Hub, has weight files: ``{"fp16"}`` of model.fp16.safetensors."""
    folder = source.folder
    if folder is None:
        with contextlib.suppress(WeightsError):
            file = source.file(f"{subfolder}/config.json" if subfolder else hub.PIPELINE_FILE)
            folder = file.parent
    elif subfolder:
        folder = folder / subfolder
    names = [path.name for path in _weight_files(folder)]
    pattern = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.([a-z]\w*?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)$")
    return {match[1] for name in names if (match := pattern.match(name))}


def _weight_files(folder: Path | None) -> list[Path]:
    return [] if folder is None else sorted(path for suffix in ("safetensors", "bin") for path in folder.rglob(f"*.{suffix}"))
