"""What `from_pretrained` and `save_pretrained` of the diffusion generators do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.base import _check_placement
from gentransforms.generators.diffusion import loading, saving
from gentransforms.generators.diffusion.base import DiffusionGenerator
from gentransforms.generators.diffusion.options import PRESETS
from gentransforms.hub import models as hub
from gentransforms.paths import local_path
from gentransforms.surroundings import isolate_loading

__all__ = ["PretrainedDiffusion"]

G = TypeVar("G", bound="PretrainedDiffusion")


class PretrainedDiffusion(DiffusionGenerator):
    """A diffusion generator that is loaded from a repository in diffusers layout, and saved into one."""

    _adapter_file: Path | None = None

    @classmethod
    @isolate_loading()
    def from_pretrained(
        cls: type[G],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        variant: str | None = None,
        vae: Any = None,
        lora: Any = None,
        ip_adapter: Any = None,
        **options: Any,
    ) -> G:
        """Load a repository or folder in diffusers layout, or one written by `save_pretrained`; returned in eval mode.

        Args:
            name_or_path: a folder, or a Hub repository ``"organisation/name"``.
            revision: commit, tag or branch of that repository.
            device: where to put it; the CPU by default.
            dtype: of its weights; float32 by default, float16 with ``preset="paper"``.
            token: for a private repository.
            cache_dir: where downloads are kept.
            local_files_only: use only what is downloaded already.
            variant: of the weight files, such as ``"fp16"``.
            vae: ``"tiny"``, or the repository, folder or module of an ``AutoencoderKL`` or ``AutoencoderTiny``.
            lora: repository, folder or file of a LoRA, or (repo, weight_name); merged into the weights. Needs ``peft``.
            ip_adapter: (repo, subfolder, weight_name), and a fourth entry where the image encoder has a folder of its own.
            options: those of the class.

        Raises:
            WeightsError: if a file is missing, damaged or of another kind.
            ConfigError: if an option is unknown or out of its range.
        """
        place = _check_placement(device, dtype)
        if dtype is None:
            dtype = torch.float16 if options.get("preset") == "paper" and "paper" in PRESETS else torch.float32
        elsewhere: dict[str, Any] = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }  # of other repositories than this
        source = hub.Source(name_or_path, revision=revision, **elsewhere)
        base = loading.pipeline_class(source)
        options = saving.saved_options(source, cls.__name__) | options
        cls._check_options({name: value for name, value in options.items() if not name.startswith("saved_")})
        saved_adapter = options.pop("ip_adapter", None)
        own_adapter = saved_adapter is not None and ip_adapter is None
        parts, options = cls._load_parts(source, base, dtype, options, elsewhere)
        passed: dict[str, Any] = {} if variant is None else {"variant": variant}
        if vae is not None:
            passed["vae"] = loading.load_vae(vae, loading.BASES[base], dtype, **elsewhere)
        raw = loading.load_pipeline(source, dtype, **passed, **cls._pipeline_parts(base, parts))
        parts, pipe = cls._parts_of(raw) | parts, loading.rebuild(raw)
        if lora is not None:
            loading.add_lora(pipe, lora, **elsewhere)
        adapter: Path | None = None
        if own_adapter or ip_adapter is not None:
            choice = (str(name_or_path), *saving.IP_ADAPTER_FILE[1:]) if own_adapter else ip_adapter
            where = elsewhere | ({"revision": revision} if own_adapter else {})
            loading.add_ip_adapter(pipe, choice, **where)
            adapter = hub.Source(choice[0], **where).file("/".join(part for part in choice[1:3] if part))
        generator = cls(pipe, **parts, **options)
        generator._adapter_file = adapter
        return generator.to(device=place)

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None) -> None:
        """Write the components in diffusers layout, ``config.json`` with the options, and a model card, into `directory`.

        A VAE, LoRA or IP-Adapter given at loading is in it, so that the folder needs no other.

        Args:
            directory: made if absent.
            dtype: of the floating weights in the files; as they are by default.
            card: as in `ImageGenerator.save_pretrained`.

        Raises:
            ConfigError: if an option is not JSON-able, such as a callable, or an IP-Adapter came inside a pipeline.
        """
        options = {name: value for name, value in self.config.items() if name != "components"} | self._saved_extra()
        if self.kind == "ip-adapter":
            options["ip_adapter"] = True
        directory = local_path(directory, "directory")
        saving.write(self, directory, options, dtype, card or {}, self._adapter_file)
        self._save_parts(directory, dtype)

    @classmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        unknown = sorted(options.keys() - cls._options - {"preset", "ip_adapter"} - cls._part_options())
        if unknown:
            known = ", ".join(sorted(cls._options | cls._part_options() | {"preset", "ip_adapter", "vae", "lora", "variant"}))
            raise ConfigError(f"unknown option {unknown[0]!r} of {cls.__name__}: expected one of {known}")

    @classmethod
    def _part_options(cls) -> frozenset[str]:
        """Options by which a subclass finds further networks."""
        return frozenset()

    @classmethod
    def _load_parts(
        cls, source: hub.Source, base: str, dtype: torch.dtype, options: dict[str, Any], elsewhere: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the further networks of a subclass, by the constructor's argument, and the options without theirs."""
        return {}, options

    @classmethod
    def _pipeline_parts(cls, base: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of them the repository's own pipeline class is to be given."""
        if "ControlNet" in base:
            raise WeightsError(f"the repository holds a {base}: use ControlNetVariation")
        return {}

    @classmethod
    def _parts_of(cls, pipe: Any) -> dict[str, Any]:
        """Return further networks that came inside a pipeline."""
        return {}

    def _saved_extra(self) -> dict[str, Any]:
        """Return what else goes into ``config.json``, under names that begin with ``saved_``."""
        return {}

    def _save_parts(self, directory: Path, dtype: torch.dtype | None) -> None:
        """Write the further networks beside the pipeline's."""
