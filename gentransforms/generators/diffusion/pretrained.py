"""Load and save the diffusion generators: their `from_pretrained` and `save_pretrained`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from gentransforms.containers import as_plain
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.card import check_card, next_card
from gentransforms.generators.destination import check_folder
from gentransforms.generators.diffusion import loading, saving
from gentransforms.generators.diffusion.base import DiffusionGenerator
from gentransforms.generators.diffusion.options import PRESETS, override
from gentransforms.generators.diffusion.state import apply_state, check_saveable, holds_lora
from gentransforms.generators.part_licenses import add_licenses, lora_places, own_source, read_licenses
from gentransforms.generators.placement import check_placement
from gentransforms.hub import models as hub
from gentransforms.hub.replaced import replacing
from gentransforms.paths import local_path
from gentransforms.surroundings import isolate_loading
from gentransforms.wording import with_article

__all__ = ["PretrainedDiffusion"]

G = TypeVar("G", bound="PretrainedDiffusion")


class PretrainedDiffusion(DiffusionGenerator):
    """A diffusion generator that is loaded from a repository in diffusers layout, and saved into one."""

    _adapter_file: Path | None = None
    _loaded_parts: frozenset[str] = frozenset()  # arguments of from_pretrained by which a subclass finds further networks

    @classmethod
    @isolate_loading()
    def _load(cls: type[G], name_or_path: str | Path, where: Mapping[str, Any], options: dict[str, Any]) -> G:
        """Load a generator as `from_pretrained` describes.

        Args:
            name_or_path: repository or folder.
            where: the arguments of `from_pretrained` that say where to load from, where to, and with which further parts.
            options: the options of the class that were given.
        """
        where = {name: as_plain(value) for name, value in where.items()}
        device, dtype, variant, vae, lora, ip_adapter = (where[n] for n in ("device", "dtype", "variant", "vae", "lora", "ip_adapter"))
        revision, parts_given = where["revision"], {name: where[name] for name in cls._loaded_parts if where[name] is not None}
        place = check_placement(device, dtype)
        if dtype is None:
            dtype = torch.float16 if options.get("preset") == "paper" and "paper" in PRESETS else torch.float32
        elsewhere = {name: where[name] for name in ("token", "cache_dir", "local_files_only")}  # for other repositories than this too
        source = hub.Source(name_or_path, revision=revision, **elsewhere)
        base = loading.pipeline_class(source)
        options = override(saving.saved_options(source, cls.__name__), options)
        saved_adapter, saved_state = options.pop("ip_adapter", None), options.pop("state", {})
        saved_licenses, own_depth = options.pop("saved_licenses", {}), bool(options.get("saved_depth")) and "depth_model" not in parts_given
        own_adapter = saved_adapter is not None and ip_adapter is None
        parts, options = cls._load_parts(source, base, dtype, options | parts_given, {"variant": variant, **elsewhere})
        cls._check_saved(source, options)
        passed = {} if vae is None else {"vae": loading.load_vae(vae, loading.BASES[base], dtype, variant, **elsewhere)}
        raw = loading.load_pipeline(source, dtype, cls._pipeline_class(base), variant, **passed, **cls._pipeline_parts(base, parts))
        parts, pipe = cls._find_parts(raw) | parts, loading.rebuild(raw)
        if lora is not None:
            loading.add_lora(pipe, lora, **elsewhere)
        adapter: Path | None = None
        if own_adapter or ip_adapter is not None:
            choice = (str(name_or_path), *saving.IP_ADAPTER_FILE[1:]) if own_adapter else ip_adapter
            keys = elsewhere | ({"revision": revision} if own_adapter else {})
            loading.add_ip_adapter(pipe, choice, variant, **keys)
            adapter = hub.Source(choice[0], **keys).file("/".join(part for part in choice[1:3] if part))
        generator = cls(pipe, **parts, **options)
        generator._adapter_file = adapter
        apply_state(generator._networks(), saved_state)
        generator.name_or_path = str(name_or_path)
        generator._remember_card(source)
        others = {"the LoRA": lora_places(lora), "the IP-Adapter": ip_adapter and ip_adapter[0], "the VAE": loading.vae_place(vae, base)}
        others |= cls._other_parts(parts_given, parts)
        if own_depth:  # whose licence was saved
            others.pop("the depth model", None)
        generator._part_licenses = add_licenses(saved_licenses, others, elsewhere)
        return generator.to(device=place)

    @classmethod
    def _of_pipeline(cls: type[G], pipe: Any, options: dict[str, Any]) -> G:
        """Do what `from_pipeline` says."""
        generator = cls(pipe, **options)
        generator._remember_card(own_source(pipe))
        lora = any(map(holds_lora, generator._networks().values()))
        inside: dict[str, Any] = (
            {"the IP-Adapter": None} if generator.kind == "ip-adapter" else {}
        )  # of which no part says where it came from
        inside |= {"the LoRA": None} if lora else {}
        generator._part_licenses = inside | read_licenses(cls._other_parts(cls._find_parts(pipe) | options, {}), {})
        return generator

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None) -> None:
        """Write the components in diffusers layout, ``config.json`` with the options, and a model card, into `directory`.

        A VAE, LoRA or IP-Adapter given at loading is included, so that the folder needs no other.

        Args:
            directory: created if it does not exist.
            dtype: dtype of the floating-point weights in the files; unchanged by default.
            card: as in `ImageGenerator.save_pretrained`.

        Raises:
            ConfigError: if an option is not JSON-able, an IP-Adapter came inside a pipeline, or a network holds a LoRA that
                is not merged, or quantised weights.
            WeightsError: as in `ImageGenerator.save_pretrained`.
        """
        directory = local_path(directory, "directory")
        check_folder(directory, type(self).__name__)
        config = self._describe_saved(dtype, card)
        page = next_card(self, card, directory, dtype)
        with replacing(directory) as folder:
            saving.write(self, folder, config, page, dtype, self._adapter_file)
            self._save_parts(folder, dtype)

    def _describe_saved(self, dtype: torch.dtype | None, card: Mapping[str, Any] | None) -> str:
        check_card(card or ())
        check_saveable(self._networks())
        if self.kind == "ip-adapter" and self._adapter_file is None:
            raise ConfigError("the IP-Adapter came inside the pipeline, and its file is not known: load it with ip_adapter=(…) to save it")
        here = {"components": None} | self._found_compiled()  # of this process
        options = {name: value for name, value in self.config.items() if name not in here} | self._saved_scheduler() | self._saved_extra()
        if self._part_licenses:
            options["saved_licenses"] = dict(self._part_licenses)
        if self.kind == "ip-adapter":
            options["ip_adapter"] = True
        return saving.describe(self, options)

    @classmethod
    def _check_saved(cls, source: hub.Source, options: Mapping[str, Any]) -> None:
        known = cls.option_names()
        if unknown := sorted(name for name in options.keys() - known if not name.startswith("saved_")):
            raise ConfigError(f"{source}: unknown option {unknown[0]!r} in its config: expected one of {', '.join(sorted(known))}")

    @classmethod
    def _load_parts(
        cls, source: hub.Source, base: str, dtype: torch.dtype, options: dict[str, Any], elsewhere: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the further networks of a subclass, by their argument of the constructor, and the remaining options."""
        return {}, options

    @classmethod
    def _other_parts(cls, given: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return where the further networks of a subclass came from, by what they are: `given` as arguments, `parts` as loaded."""
        return {}

    @classmethod
    def _pipeline_class(cls, base: str) -> str:
        """Return the class that is to load a repository of the pipeline `base`."""
        return base

    @classmethod
    def _pipeline_parts(cls, base: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the parts that the repository's own pipeline class takes."""
        if "ControlNet" in base:
            raise WeightsError(f"the repository holds {with_article(base)}: use ControlNetVariation")
        return {}

    @classmethod
    def _find_parts(cls, pipe: Any) -> dict[str, Any]:
        """Return further networks that came inside a pipeline."""
        return {}

    def _saved_extra(self) -> dict[str, Any]:
        """Return what else goes into ``config.json``, under names that begin with ``saved_``."""
        return {}

    def _save_parts(self, directory: Path, dtype: torch.dtype | None) -> None:
        """Write the further networks beside the pipeline's."""
