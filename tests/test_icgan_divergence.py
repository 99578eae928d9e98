"""Training that comes to NaN or infinity: it ends before that is written, and goes on with other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from icgan_example import example, photos, run, settings
from rich.progress import Progress

import gentransforms as gt

RATES = ["generator.learning_rate_G=1e-4", "generator.learning_rate_D=1e-4"]


def poison(monkeypatch: pytest.MonkeyPatch, module: str, name: str, from_call: int, change: Any = lambda x: x * float("nan")) -> None:
    """Let a function return something else from so many calls on."""
    place, calls = example(module), []
    original = getattr(place, name)

    def other(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        found = original(*args, **kwargs)
        return found if len(calls) < from_call else change(found)

    monkeypatch.setattr(place, name, other)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose encoder is complete."""
    folder = tmp_path_factory.mktemp("encoded")
    example("encoder").train_encoder(photos(), settings(), folder, Progress(disable=True))
    return folder


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


class TestRefuseDivergence:
    @pytest.mark.parametrize("value", [float("inf"), torch.tensor([1.0, float("nan")]), {"a": [{"b": torch.tensor(-torch.inf)}]}])
    def test_names_step_value_and_remedy(self, value: Any, tmp_path: Path) -> None:
        refuse, read_mark = (getattr(example("divergence"), name) for name in ("refuse_divergence", "read_mark"))
        with pytest.raises(SystemExit) as caught:
            refuse(settings("precision=bfloat16"), tmp_path, "generator", 7, {"loss D": 1.0, "critic": value})
        assert str(caught.value) == (
            "generator step 7: critic is NaN or infinite, and was not written. Run the same command with a lower generator.learning_rate_G "
            "(now 0.0003) and generator.learning_rate_D (now 0.0005), or with precision=float32 (now bfloat16): "
            "the generator begins again, as it has no checkpoint yet."
        )
        assert read_mark(tmp_path) == {"stage": "generator", "step": 0}

    def test_what_is_finite_passes(self, tmp_path: Path) -> None:
        layer = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        values = {"loss": 1.0, "count": torch.tensor(3), "layer": layer, "optimizer": optimizer, "name": "x", "none": None}
        example("divergence").refuse_divergence(settings(), tmp_path, "encoder", 1, values)
        assert not list(tmp_path.iterdir())
        optimizer.state[layer.weight]["exp_avg"].fill_(float("inf"))
        assert not example("divergence").is_finite(optimizer)


class TestEncoder:
    def test_ends_before_the_checkpoint_and_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        train, encoder = example("train"), example("encoder")
        train.open_run(tmp_path, settings("log_every=100"), photos())
        with monkeypatch.context() as patch:  # the fourth loss; read at the checkpoint of that step
            poison(patch, "encoder", "decoupled_contrastive_loss", 4)
            with pytest.raises(SystemExit, match=r"encoder step 4: loss is NaN .* goes on from .*encoder\.pt, the finite state of step 2"):
                run(tmp_path, "log_every=100")
        assert step_of(tmp_path / "encoder.pt") == 2
        lower = settings("encoder.learning_rate=1e-3")
        train.open_run(tmp_path, lower, photos())
        record = train.read_record(tmp_path)
        assert record["after_divergence"] == ["encoder from step 2: encoder.learning_rate (0.002, now 0.001)"]
        seen = []
        poison(monkeypatch, "encoder", "_warmup_cosine", 1, lambda share: seen.append(share) or share)
        found = encoder.train_encoder(photos(), lower, tmp_path, Progress(disable=True))
        assert example("divergence").is_finite(found)
        state = torch.load(tmp_path / "encoder.pt", weights_only=True)
        assert state["step"] == 6
        (group,) = state["optimizer"]["param_groups"]
        assert (group["initial_lr"], group["lr"]) == (1e-3, pytest.approx(1e-3 * seen[-1]))
        assert not (tmp_path / "diverged.json").exists()
        with pytest.raises(SystemExit, match=r"other encoder\.learning_rate"):  # it does not diverge any more
            train.open_run(tmp_path, settings(), photos())
        train.open_run(tmp_path, lower, photos())
        assert train.read_record(tmp_path) == record

    def test_what_is_complete_has_finite_statistics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def spoil(encoder: Any, images: torch.Tensor) -> None:
            encoder.stem[1].running_var.fill_(float("inf"))

        monkeypatch.setattr(example("encoder"), "settle_statistics", spoil)
        with pytest.raises(SystemExit, match=r"encoder step 6: encoder is NaN or infinite"):
            run(tmp_path)
        assert step_of(tmp_path / "encoder.pt") == 4

    def test_checkpoint_of_an_earlier_version(self, tmp_path: Path) -> None:
        torch.save({"step": 6, "encoder": {"weight": torch.tensor([float("nan")])}}, tmp_path / "encoder.pt")
        with pytest.raises(SystemExit, match=r"encoder\.pt, of step 6, holds NaN .* Delete .*encoder\.pt\. Run .* begins again"):
            run(tmp_path)


class TestGenerator:
    def test_nothing_is_written_of_it(self, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        train = example("train")
        (tmp_path / "encoder.pt").write_bytes((encoded / "encoder.pt").read_bytes())
        train.open_run(tmp_path, settings(), photos())
        with monkeypatch.context() as patch:

            def weights(average: Any, model: Any, decay: float) -> None:
                calls.append(1)
                if len(calls) == 4:  # after the losses of the last step, which are finite
                    average.shared_feat.bias.data.fill_(float("nan"))

            calls: list[int] = []
            patch.setattr(example("adversarial"), "_update_average", weights)
            with pytest.raises(SystemExit, match=r"generator step 4: average is NaN .* the finite state of step 2"):
                run(tmp_path)
        assert step_of(tmp_path / "generator.pt") == 2
        assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {"0000001", "0000002"}
        train.open_run(tmp_path, settings(*RATES), photos())
        (said,) = train.read_record(tmp_path)["after_divergence"]
        assert said.startswith("generator from step 2: generator.learning_rate_D (0.0005, now 0.0001), generator.learning_rate_G")
        run(tmp_path, *RATES)
        state = torch.load(tmp_path / "generator.pt", weights_only=True)
        assert state["step"] == 4
        assert {state[name]["param_groups"][0]["lr"] for name in ("optimizer_G", "optimizer_D")} == {1e-4}
        assert not (tmp_path / "diverged.json").exists()

    def test_a_loss_that_is_logged(self, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """At such rates all is lost after a step; there is no checkpoint yet, and other settings of the generator begin it again."""
        train, high = example("train"), ["generator.learning_rate_G=1e30", "generator.learning_rate_D=1e30", "checkpoint_every=100"]
        (tmp_path / "encoder.pt").write_bytes((encoded / "encoder.pt").read_bytes())
        for _ in range(2):  # the same command finds the same
            train.open_run(tmp_path, settings(*high), photos())
            with pytest.raises(SystemExit, match=r"generator step 1: loss G .* the generator begins again, as it has no checkpoint yet"):
                run(tmp_path, *high, "sample_every=100")
        assert not (tmp_path / "generator.pt").exists()
        (tmp_path / "snapshots" / "0000001").mkdir(parents=True)
        train.open_run(tmp_path, settings(*RATES, "generator.G_ch=8"), photos())
        assert not (tmp_path / "snapshots").exists()  # of the other settings
        assert f"{tmp_path / 'snapshots'}, of the generator with the former settings, is removed" in capsys.readouterr().out
        (tmp_path / "snapshots" / "0000001").mkdir(parents=True)
        (tmp_path / "pretrained").mkdir()  # a run that was finished, and whose generator.pt was deleted
        with pytest.raises(SystemExit, match=r"other generator\.G_ch"):
            train.open_run(tmp_path, settings(*RATES, "generator.G_ch=16"), photos())
        assert (tmp_path / "snapshots" / "0000001").exists()
        with pytest.raises(SystemExit, match=r"other encoder\.epochs"):
            train.open_run(tmp_path, settings("encoder.epochs=3"), photos())

    def test_statistics(self, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def spoil(ready: Any) -> Any:
            ready.blocks[0][0].bn1.stored_var.fill_(float("inf"))
            return ready

        poison(monkeypatch, "adversarial", "with_statistics", 1, spoil)
        with pytest.raises(SystemExit, match="generator step 1: average with standing statistics is NaN or infinite"):
            run(tmp_path, encoder_of=encoded)
        assert not (tmp_path / "snapshots").exists()

    def test_weights_beyond_float16(self, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A large variance would be infinite in float16."""
        encoder = example("encoder").train_encoder(photos(), settings(), encoded, Progress(disable=True))
        config = example("ranges").build_config(settings())
        ready = example("networks").Generator(config).eval()
        for name, dtype in (("fits", torch.float16), ("large", torch.float32)):
            if name == "large":
                ready.blocks[0][0].bn1.stored_var.fill_(1e5)
            example("results").export(ready, encoder, tmp_path / name, 0.7, {})
            assert ("written in float32" in capsys.readouterr().out) == (name == "large")
            stored = json.loads((tmp_path / name / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
            assert {entry["dtype"] for key, entry in stored.items() if "stored_var" in key} == {"F16" if dtype == torch.float16 else "F32"}
            assert gt.load_generator(tmp_path / name)(photos(2) / 255, torch.arange(2)).isfinite().all()


class TestJudge:
    def test_a_diverged_one_is_no_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        classifier, images = example("classifier"), photos(12)
        poison(monkeypatch, "classifier", "_pair", 1, lambda pair: pair.apply(lambda m: [p.data.mul_(torch.nan) for p in m.parameters()]))
        with pytest.raises(SystemExit, match=r"diverged in epoch 1: loss nan; try another --seed \(now 3\)$"):
            classifier.train_judge(images, torch.arange(12) % 2, 1, 3, 16, precision="float32")

    def test_loading(self, tmp_path: Path) -> None:
        classifier = example("classifier")
        with pytest.raises(SystemExit, match=r"no .*classifier\.pt: expected a folder written by classifier\.py"):
            classifier.load_judge(tmp_path)
        judge = classifier.Judge(2, 16, 8)
        judge.head.weight.data[0, 0] = torch.nan
        torch.save({"arguments": judge.arguments, "names": ["a", "b"], "weights": judge.state_dict()}, tmp_path / "classifier.pt")
        with pytest.raises(SystemExit, match=r"classifier\.pt holds NaN or infinity"):
            classifier.load_judge(tmp_path)
