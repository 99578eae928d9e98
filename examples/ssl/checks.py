"""Checks of the values of settings: choices, ranges, and settings that require others."""

from __future__ import annotations

from typing import Any


def refuse_useless_values(values: dict[str, Any]) -> None:
    """Exit, naming the setting, its value and what was expected, if a value is out of range or a needed one is not set.

    `values` holds every setting by its full name, such as ``trainer.epochs``.
    """
    for name, value in values.items():
        last = name.rpartition(".")[2]
        if (last in ("p", "p_end") or last.endswith("_p")) and value is not None and not 0 <= value <= 1:
            raise SystemExit(f"{name}={value!r}: expected a probability, from 0 to 1")
    choices = {
        "generative.source": ("none", "bank", "online"),
        "augmentation.interpolation": ("bicubic", "bilinear"),
        "backbone.name": ("resnet50", "resnet18", "small"),
        "backbone.stem": ("imagenet", "cifar"),
        "optimizer.name": ("lars", "sgd", "adamw"),
        "trainer.precision": ("auto", "32-true", "16-mixed", "bf16-mixed"),
    }
    if values.get("method.predictor_schedule") is not None:
        choices["method.predictor_schedule"] = ("constant",)
    for name, allowed in choices.items():
        if values[name] not in allowed:
            raise SystemExit(f"{name}={values[name]!r}: expected one of {', '.join(allowed)}")
    positive = ["data.image_size", "data.limit", "optimizer.base_lr", "probe.every", "probe.k", "probe.images", "probe.temperature"]
    positive += [f"trainer.{name}" for name in ("epochs", "batch_size", "devices", "nodes", "accumulate", "checkpoint_every", "log_every")]
    for name in [*positive, *(f"method.{name}" for name in ("temperature", "queue"))]:
        if values.get(name) is not None and values[name] <= 0:
            raise SystemExit(f"{name}={values[name]!r}: expected more than 0")
    for name in ("data.holdout", "data.workers", "optimizer.warmup_epochs"):
        if values[name] < 0:
            raise SystemExit(f"{name}={values[name]!r}: expected 0 or more")
    for name, value in values.items():
        if name.endswith((".crop_scale", ".blur_sigma")) and not (len(value) == 2 and 0 < value[0] <= value[1]):
            raise SystemExit(f"{name}={value!r}: expected two numbers above 0, the smaller first")
    if values["data.test_on_holdout"] and not values["data.holdout"]:
        raise SystemExit("data.test_on_holdout=True needs data.holdout, the number of images that are held out: expected more than 0")
    widths, blocks = values["backbone.widths"], values["backbone.blocks"]
    if not widths or len(widths) != len(blocks):
        raise SystemExit(f"backbone.blocks={blocks!r}: expected as many numbers as backbone.widths={widths!r}, and at least one")
    if values["generative.source"] == "bank" and not values["generative.bank"]:
        raise SystemExit("generative.source=bank needs generative.bank=FOLDER; `gentransforms generate SOURCE BANK` makes one")
    chosen = [name for name in ("generative.select", "generative.weights") if values[name] is not None]
    if chosen and values["generative.source"] != "bank":
        raise SystemExit(f"{chosen[0]}={values[chosen[0]]!r}: a bank is needed, generative.source is {values['generative.source']!r}")
    if chosen and not values["generative.scores"] and (values["generative.weights"] or not values["generative.select"].endswith(".json")):
        raise SystemExit(
            f"{chosen[0]}={values[chosen[0]]!r} needs generative.scores=scores.parquet, which `gentransforms bank audit` writes"
        )
    if values["generative.source"] == "online" and not values["generative.generator"]:
        raise SystemExit("generative.source=online needs generative.generator, for example icgan-cifar10-32")
    if not values["data.train"]:
        raise SystemExit("data.train is not set: expected a folder, a .parquet file or torchvision:NAME:ROOT")
    if values["trainer.batch_size"] < 2:
        raise SystemExit(f"trainer.batch_size={values['trainer.batch_size']}: expected 2 or more, batch norm needs them")
