"""Load and save `PipelineVariation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gentransforms.errors import ConfigError
from gentransforms.generators.card import check_card, next_card
from gentransforms.generators.destination import check_folder
from gentransforms.generators.diffusion import saving, state
from gentransforms.generators.diffusion.controlled import DEPTH_MODEL
from gentransforms.generators.diffusion.loading import add_lora
from gentransforms.generators.part_licenses import add_licenses, lora_places
from gentransforms.generators.pipelines import control, settings
from gentransforms.generators.pipelines.execution.offloading import check_offload
from gentransforms.generators.pipelines.opening import check_opens, is_single_file, load_any, load_single_file
from gentransforms.generators.pipelines.processors import check_saved_whole
from gentransforms.generators.placement import check_placement
from gentransforms.hub import models as hub
from gentransforms.hub.replaced import replacing
from gentransforms.paths import local_path

__all__ = ["describe", "load", "save"]

_PRIOR = "prior_pipeline"  # folder of a saved prior


def load(cls: Any, name_or_path: str | Path, given: Mapping[str, Any]) -> Any:
    """Implement `PipelineVariation.from_pretrained`.

    Args:
        cls: the class.
        name_or_path: repository, folder or file.
        given: the other arguments by name; ``options`` holds those of the class and of the pipeline's call.
    """
    was: dict[str, Any]
    place, dtype, variant = check_placement(given["device"], given["dtype"]), given["dtype"] or torch.float32, given["variant"]
    offload = check_offload(given["options"].get("offload"))  # before anything is downloaded
    if offload is not None and given["device"] is not None and place.type == "cpu":
        raise ConfigError(f"device={given['device']!r} and offload={offload!r}: it computes on an accelerator: leave one of them out")
    elsewhere: dict[str, Any] = {name: given[name] for name in ("token", "cache_dir", "local_files_only")}
    of_source, prior, config = elsewhere | {"revision": given["revision"]}, given["prior"], given["config"]
    passed = {name: given[name] for name in ("safety_checker", "watermarker") if given[name] != "repository"}
    if given["watermarker"] not in ("repository", None):
        raise ConfigError(
            f"watermarker={given['watermarker']!r}: expected None, which leaves it out; to use a watermarker of your own, set "
            "pipe.watermark and pass the pipeline to from_pipeline"
        )
    if is_single_file(name_or_path):
        _check_unused(
            name_or_path,
            given,
            ("variant", "quantization_config"),
            "a single file is read as it is, by diffusers' from_single_file: give a folder or repository in its layout",
        )
        if local_path(name_or_path, "name_or_path").is_file():
            _check_unused(name_or_path, given, ("revision",), "the file is on this machine")
        pipe = load_single_file(name_or_path, config, of_source, dtype, (prior is not None, given["options"]), **passed)
        source, had, was, options, beside = hub.Source(config, **elsewhere), {}, {}, given["options"], _beside(name_or_path, of_source)
    else:
        source, beside = hub.Source(name_or_path, **of_source), None
        if config is not None:
            raise ConfigError(f"config={config!r}: only for a single file; {source} has its own configurations")
        saved = saving.saved_options(source, cls.__name__)
        had = {name: saved.pop(name, None) for name in ("prior", "state", "depth", "settings", "licenses")}
        was = had["settings"] or {}
        if "watermark" in was.get("pipe", {}) and was["pipe"]["watermark"] is None and "watermarker" not in passed:
            passed["watermarker"] = None
        options = saved.pop("options", {}) | saved | given["options"]
        if given["quantization_config"] is not None:
            passed["quantization_config"] = given["quantization_config"]
        pipe = load_any(source, dtype, variant, wanted=(prior is not None or bool(had["prior"]), options), **passed)
        settings.restore_settings(pipe, was.get("pipe", {}))
        if "watermarker" not in passed:
            try:
                settings.check_watermark(pipe, was.get("pipe", {}))
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from error
    if given["lora"] is not None:
        add_lora(pipe, given["lora"], **elsewhere)
    parts: dict[str, Any] = {}
    if prior is not None:
        parts["prior"] = load_any(hub.Source(prior, **elsewhere), dtype, variant)
    elif had.get("prior"):
        parts["prior"] = load_any(source, dtype, variant, folder=_PRIOR)
        settings.restore_settings(parts["prior"], was.get("prior", {}))
    if options.get("condition") == "depth":
        parts["depth_estimator"] = control.load_depth(given["depth_model"], source, bool(had.get("depth")), dtype, elsewhere)
    else:
        _check_unused(name_or_path, given, ("depth_model",), "it is only for condition='depth'")
    try:
        generator = cls(pipe, **parts, **options)
    except ConfigError as error:
        raise ConfigError(f"{name_or_path}: {error}") from error
    state.apply_state(generator._networks(), had.get("state") or {})
    generator.name_or_path = str(name_or_path)
    if beside is None:
        generator._remember_card(source)
    else:
        generator._set_license(beside)
    depth = given["depth_model"]
    if depth is None and "depth_estimator" in parts and not had.get("depth"):
        depth = DEPTH_MODEL
    generator._part_licenses = add_licenses(
        had.get("licenses") or {}, {"the LoRA": lora_places(given["lora"]), "the prior": prior, "the depth model": depth}, elsewhere
    )
    return generator if offload is not None and given["device"] is None else generator.to(device=place)


def _beside(file: str | Path, where: Mapping[str, Any]) -> hub.License:
    """Return the licence on the card beside a single file."""
    path = local_path(file, "name_or_path")
    if path.is_file():
        return hub.read_license(hub.Source(path.parent, local_files_only=True))
    return hub.read_license(hub.Source("/".join(str(file).split("/")[:2]), **where))


def _check_unused(name_or_path: str | Path, given: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
    for name in names:
        if given[name] is not None:
            raise ConfigError(f"{name}={given[name]!r} has no effect on {name_or_path}: {reason}; leave it out")


def describe(generator: Any, dtype: torch.dtype | None, card: Mapping[str, Any] | None) -> str:
    """Return the text of ``config.json``; raise ConfigError if the generator cannot be saved, or not with sections of such names."""
    check_card(card or ())
    if dtype is not None:
        raise ConfigError(f"dtype={dtype}: load the generator with dtype={dtype} and save that; a pipeline is saved as it is")
    own = generator._own_options()
    given = {name: value for name, value in own.items() if name != "options"} | own["options"]
    for pipe in (generator.pipe, *([generator.prior] if generator.prior is not None else [])):
        check_opens(pipe, given)
    state.check_saveable(generator._networks())
    check_saved_whole(generator._networks())
    has: dict[str, Any] = {"prior": generator.prior is not None, "depth": generator._own_depth}
    has["settings"] = {"pipe": settings.read_settings(generator.pipe, generator._notes)}
    if generator.prior is not None:
        has["settings"]["prior"] = settings.read_settings(generator.prior, generator._prior_notes)
    has["licenses"] = dict(generator._part_licenses)
    # Whether it is offloaded is a matter of this machine, and what else compiled its networks of this process.
    here = {"offload": None} | generator._found_compiled()
    config = {name: value for name, value in generator.config.items() if "components" not in name and name not in here} | has
    return saving.describe(generator, config)


def save(generator: Any, directory: str | Path, dtype: torch.dtype | None, card: Mapping[str, Any] | None) -> None:
    """Implement `PipelineVariation.save_pretrained`."""
    directory = local_path(directory, "directory")
    check_folder(directory, type(generator).__name__)
    config = describe(generator, dtype, card)
    page = next_card(generator, card, directory)
    with replacing(directory) as folder:
        generator.pipe.save_pretrained(folder, safe_serialization=True)
        if generator.prior is not None:
            generator.prior.save_pretrained(folder / _PRIOR, safe_serialization=True)
        if generator._own_depth:
            generator.depth_estimator.save_pretrained(folder / control.DEPTH_FOLDER, safe_serialization=True)
            generator.depth_processor.save_pretrained(folder / control.DEPTH_FOLDER)
        (folder / hub.CONFIG_FILE).write_text(config + "\n")
        (folder / hub.CARD_FILE).write_text(page, encoding="utf-8")
