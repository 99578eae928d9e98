"""The networks of a pipeline, which generator and pipeline both hold: read, replaced and compiled in both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion import state
from gentransforms.generators.diffusion.describe import select_networks
from gentransforms.generators.diffusion.faster.execution import unfused_weights
from gentransforms.generators.diffusion.schedulers import check_scheduler
from gentransforms.generators.identity import uncompiled
from gentransforms.generators.pipelines import calls
from gentransforms.generators.pipelines.called import CalledPipeline
from gentransforms.generators.pipelines.execution.compiling import check_denoiser, compile_denoiser, denoisers
from gentransforms.generators.pipelines.kinds.supported import check_casting

__all__ = ["PipelineNetworks"]


class PipelineNetworks(CalledPipeline):
    """A called pipeline whose networks are modules of the generator too: one that is set in the generator also runs in the pipeline."""

    def _read_state(self) -> dict[str, Any]:
        for name, pipe in {"": self.pipe, "prior_": self.prior}.items():
            for part, network in select_networks(pipe.components if pipe is not None else {}).items():
                if network is not uncompiled(getattr(self, name + part, None)):
                    raise ConfigError(
                        f"{part} of the {type(pipe).__name__} was replaced after the generator was built: set it in the generator too, "
                        f"generator.{name}{part} = …, or build another"
                    )
            if getattr(pipe, "scheduler", None) is not None:
                check_scheduler(f"{name}scheduler", pipe.scheduler)
        networks = self._networks()
        check_casting(networks)
        return state.read_state(networks, strict=False)

    def __setattr__(self, name: str, value: Any) -> None:
        pipe = self._owner(name)
        if pipe is not None:
            part = name.removeprefix("prior_") if pipe is self.prior else name
            if not isinstance(getattr(pipe, part), nn.Module):
                raise ConfigError(
                    f"{name} is no network: set it in the pipeline, generator.{'prior' if pipe is self.prior else 'pipe'}.{part}"
                )
            steps = part in denoisers(pipe) and pipe is self.pipe
            if steps and (mode := self._init_config.get("compile", False)):
                check_denoiser(part, value, mode)
            self._lift()
            for inner in calls.inner_pipelines(pipe):
                for name_inside, held in inner.components.items():
                    if held is getattr(pipe, part):
                        setattr(inner, name_inside, value)
            setattr(pipe, part, value)  # whose call makes the images
            self._once.clear()
            if steps:
                self._compile([value])
        super().__setattr__(name, value)

    def _owner(self, name: str) -> Any:
        """Return the pipeline that has a component of this name; None if it is no component, or none is known yet."""
        own = vars(self)
        if "_once" not in own:
            return None
        if name in own["pipe"].components:
            return own["pipe"]
        found = own["prior"] is not None and name.startswith("prior_") and name.removeprefix("prior_") in own["prior"].components
        return own["prior"] if found else None

    def _saved_weights(self) -> dict[str, Tensor]:
        with self._lifted() if self.offload == "sequential" else contextlib.nullcontext():  # between calls the weights are elsewhere
            return unfused_weights(self, self._networks())

    def _networks(self) -> dict[str, nn.Module]:
        return select_networks(dict(self.named_children()))

    def _denoising_networks(self) -> list[nn.Module]:
        return [self.pipe.components[name] for name in denoisers(self.pipe)]

    def _compile(self, networks: Iterable[nn.Module]) -> None:
        if mode := self._init_config.get("compile", False):
            for network in networks:
                compile_denoiser(network, mode)
