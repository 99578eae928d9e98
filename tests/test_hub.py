"""Loading from and pushing to the Hub: the real client, in a process of its own, against a server on this machine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import hub_client
import huggingface_hub
import pytest
from hub_server import TOKEN, Hub, Repo

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.registry import find_class
from gentransforms.hub import models as hub_module

TINY: dict[str, Any] = {
    "network": {"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0"},
    "feature_extractor": {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]},
}


@dataclasses.dataclass(frozen=True)
class Site:
    """The server, a process that may reach it, one that is told to be offline, and what all tests load."""

    hub: Hub
    online: ProcessPoolExecutor
    offline: ProcessPoolExecutor
    folder: Path
    files: dict[str, bytes]
    fingerprint: str

    def load(self, name: str, *, offline: bool = False, **options: Any) -> dict[str, Any]:
        process = self.offline if offline else self.online
        return process.submit(hub_client.load, name, **options).result()

    def class_name(self, name: str, *, offline: bool = False, **options: Any) -> str:
        process = self.offline if offline else self.online
        return process.submit(hub_client.class_name, name, **options).result()

    def push(self, repo_id: str, **options: Any) -> str:
        return self.online.submit(hub_client.push, str(self.folder), repo_id, **options).result()

    @property
    def expected(self) -> dict[str, str]:
        return {"class": "ICGAN", "fingerprint": self.fingerprint}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    hub, home = Hub(), tmp_path_factory.mktemp("home")
    with hub_client.process(hub.endpoint, home) as online, hub_client.process(hub.endpoint, home, offline=True) as offline:
        folder = tmp_path_factory.mktemp("saved")
        generator = gt.ICGAN(**TINY)
        generator.save_pretrained(folder, card={"license": "mit"})
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        yield Site(hub, online, offline, folder, files, generator.fingerprint())
    hub.close()


@pytest.fixture
def model(site: Site, request: pytest.FixtureRequest) -> str:
    """A repository with the generator, whose name no other test uses."""
    name = f"org/{request.node.originalname.removeprefix('test_').replace('_', '-')}"
    site.hub.repos[name] = Repo()
    site.hub.repos[name].commit(site.files)
    return name


class TestDownload:
    """From a repository's name to a generator."""

    @pytest.mark.parametrize("cls", ["", "ICGAN"])
    def test_first_load(self, site: Site, model: str, tmp_path: Path, cls: str) -> None:
        with site.hub.recorded() as requests:
            assert site.load(model, cls=cls, cache_dir=tmp_path) == site.expected
        assert {r.route.split("/")[-1] for r in requests} == {"config.json", "model.safetensors", "README.md"}
        assert all(r.token is None for r in requests)

    def test_pinned_and_cached_asks_nothing(self, site: Site, model: str, tmp_path: Path) -> None:
        commit = site.hub.repos[model].refs["main"]
        assert site.load(model, revision=commit, cache_dir=tmp_path) == site.expected
        with site.hub.recorded() as requests:
            assert site.load(model, revision=commit, cache_dir=tmp_path) == site.expected
        assert requests == []

    def test_cached_downloads_nothing_again(self, site: Site, model: str, tmp_path: Path) -> None:
        site.load(model, cache_dir=tmp_path)
        with site.hub.recorded() as requests:
            assert site.load(model, cache_dir=tmp_path) == site.expected
        assert {r.route.split()[0] for r in requests} == {"HEAD"}

    def test_revisions(self, site: Site, model: str, tmp_path: Path) -> None:
        repo = site.hub.repos[model]
        first = repo.refs["v1"] = repo.refs["main"]
        gt.ICGAN(**TINY, truncation=0.5).save_pretrained(tmp_path / "second")
        repo.commit({path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()})
        second = {"class": "ICGAN", "fingerprint": gt.load_generator(tmp_path / "second").fingerprint()}
        assert second != site.expected
        for revision, expected in {"v1": site.expected, first: site.expected, "main": second, None: second}.items():
            assert site.load(model, revision=revision, cache_dir=tmp_path) == expected

    def test_unknown_revision(self, site: Site, model: str, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=f"{model}: the Hub has no such revision: 'v9'"):
            site.load(model, revision="v9", cache_dir=tmp_path)

    def test_unknown_repository(self, site: Site) -> None:
        with pytest.raises(WeightsError, match="org/nothing: no such repository on the Hub, or it is private"):
            site.load("org/nothing")

    @pytest.mark.parametrize("name", ["org/na me", "org/" + "a" * 100, "-org/name--"])
    def test_name_that_no_repository_can_have(self, site: Site, name: str) -> None:
        with site.hub.recorded() as requests, pytest.raises(WeightsError, match=f"{name}: no such repository"):
            site.load(name)
        assert requests == []

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
    def test_missing_file(self, site: Site, model: str, tmp_path: Path, missing: str) -> None:
        repo = site.hub.repos[model]
        del repo.commits[repo.refs["main"]][missing]
        with pytest.raises(WeightsError, match=rf"{model}: the repository has no file '{missing}'"):
            site.load(model, cache_dir=tmp_path)

    def test_weights_of_another_commit(self, site: Site, model: str, tmp_path: Path) -> None:
        site.hub.repos[model].commit({"model.safetensors": site.files["model.safetensors"][:-4] + bytes(4)})
        with pytest.raises(WeightsError, match=rf"{model}: model\.safetensors is damaged or not the file its config describes"):
            site.load(model, cache_dir=tmp_path)


class TestToken:
    """Private and gated repositories, and where the token goes."""

    def test_private(self, site: Site, model: str, tmp_path: Path) -> None:
        site.hub.repos[model].private = True
        with pytest.raises(WeightsError, match=f"{model}: no such repository on the Hub, or it is private: check the name, or pass token="):
            site.load(model, cache_dir=tmp_path)
        with pytest.raises(WeightsError, match=rf"(?s){model}: 'config\.json' could not be fetched: .*401.*Invalid credentials"):
            site.load(model, cache_dir=tmp_path, token="hf_wrong")
        with site.hub.recorded() as requests:
            assert site.load(model, cache_dir=tmp_path, token=TOKEN) == site.expected
        assert {r.token for r in requests if r.host == "127.0.0.1"} == {TOKEN}
        assert {r.token for r in requests if r.host == "localhost"} == {None}  # another host, where large files are

    def test_gated(self, site: Site, model: str, tmp_path: Path) -> None:
        site.hub.repos[model].gated = True
        with pytest.raises(WeightsError, match=f"{model}: .*is gated: accept .* at http://127.*/{model}, then log in.*pass token="):
            site.load(model, cache_dir=tmp_path, token=TOKEN)


class TestNoNetwork:
    """Offline, and servers in trouble."""

    def test_offline(self, site: Site, model: str) -> None:
        for options in ({"offline": True}, {"local_files_only": True}):
            with site.hub.recorded() as requests, pytest.raises(WeightsError, match=rf"{model}: 'config\.json' is not in the local cache"):
                site.load(model, **options)
            assert requests == []
        site.load(model)  # into the cache both processes share
        for options in ({"offline": True}, {"local_files_only": True}):
            with site.hub.recorded() as requests:
                assert site.load(model, **options) == site.expected
            assert requests == []

    @pytest.mark.parametrize("trouble", [lambda hub: hub.down(), lambda hub: hub.that(answer="503")], ids=["refuses", "503"])
    def test_server_in_trouble(self, site: Site, model: str, tmp_path: Path, trouble: Callable[[Hub], Any]) -> None:
        with trouble(site.hub), pytest.raises(WeightsError, match=rf"{model}: 'config\.json' .* could not be fetched; check the network"):
            site.load(model, cache_dir=tmp_path)
        site.load(model, cache_dir=tmp_path)
        with trouble(site.hub):
            assert site.load(model, cache_dir=tmp_path) == site.expected

    def test_server_hangs_up(self, site: Site, model: str, tmp_path: Path) -> None:
        with site.hub.that(answer="hang up"), pytest.raises(WeightsError, match=rf"{model}: 'config\.json' .*could not be fetched"):
            site.load(model, cache_dir=tmp_path)

    def test_download_that_breaks_off(self, site: Site, model: str, tmp_path: Path) -> None:
        with site.hub.that(cut="model.safetensors"), pytest.raises(WeightsError, match=r"'model\.safetensors' could not be fetched"):
            site.load(model, cache_dir=tmp_path)
        assert site.load(model, cache_dir=tmp_path) == site.expected  # nothing half is left in the cache


class TestPush:
    """To the Hub, and back."""

    def test_round_trip(self, site: Site, tmp_path: Path) -> None:
        address = site.push("org/pushed", token=TOKEN, commit_message="First")
        repo = site.hub.repos["org/pushed"]
        assert address == f"{site.hub.endpoint}/org/pushed/commit/{repo.refs['main']}"
        files = repo.commits[repo.refs["main"]]
        assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        assert files["model.safetensors"] == site.files["model.safetensors"]
        assert site.load("org/pushed", cache_dir=tmp_path) == site.expected

    def test_again_into_the_same_repository(self, site: Site, tmp_path: Path) -> None:
        for _ in range(2):  # the second time nothing changed
            address = site.push("org/pushed-again", token=TOKEN)
        assert address.endswith(site.hub.repos["org/pushed-again"].refs["main"])
        site.push("org/pushed-again", token=TOKEN, card={"license": "apache-2.0"})
        assert len(site.hub.repos["org/pushed-again"].commits) == 3
        assert site.load("org/pushed-again", cache_dir=tmp_path) == site.expected

    def test_private(self, site: Site, tmp_path: Path) -> None:
        site.push("org/pushed-private", token=TOKEN, private=True)
        with pytest.raises(WeightsError, match="private"):
            site.load("org/pushed-private", cache_dir=tmp_path)
        assert site.load("org/pushed-private", cache_dir=tmp_path, token=TOKEN) == site.expected
        site.push("org/pushed-private", token=TOKEN, private=True)  # again

    def test_nothing_private_goes_into_a_public_repository(self, site: Site) -> None:
        site.push("org/pushed-public", token=TOKEN)
        before = len(site.hub.repos["org/pushed-public"].commits)
        with pytest.raises(WeightsError, match=r"^org/pushed-public: private=True, and this repository exists and is public"):
            site.push("org/pushed-public", token=TOKEN, private=True, card={"license": "mit"})
        assert len(site.hub.repos["org/pushed-public"].commits) == before

    @pytest.mark.parametrize(
        ("repo_id", "options", "reason"),
        [
            ("org/no-token", {}, "401"),
            ("org/wrong-token", {"token": "hf_wrong"}, "401"),
            ("org/na me", {"token": TOKEN}, "na me"),
            ("org/no-branch", {"token": TOKEN, "revision": "nothing"}, "nothing"),
            ("org/card", {"token": TOKEN, "card": {"license": "gfdl"}}, "license"),  # which this server does not list
        ],
    )
    def test_refused(self, site: Site, repo_id: str, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(WeightsError, match=f"(?s){repo_id}: the upload failed: .*{reason}"):
            site.push(repo_id, **options)

    def test_a_licence_of_another_name(self, site: Site) -> None:
        site.push("org/own-licence", token=TOKEN, card={"license": "Our Own", "license_link": "https://example.org/terms"})
        repo = site.hub.repos["org/own-licence"]
        card = repo.commits[repo.refs["main"]]["README.md"].decode()
        assert "license: other\nlicense_name: our-own\nlicense_link: https://example.org/terms\n" in card

    def test_a_repository_of_the_users_own(self, site: Site, tmp_path: Path) -> None:
        for _ in range(2):  # one that is new, and one that is there
            address = site.push("my-own", token=TOKEN)
            assert address.startswith(f"{site.hub.endpoint}/me/my-own/commit/")
        assert site.load("me/my-own", cache_dir=tmp_path) == site.expected
        assert "my-own" not in site.hub.repos
        with pytest.raises(WeightsError, match=r"^me/my-own: private=True, and this repository exists and is public"):
            site.push("my-own", token=TOKEN, private=True)

    def test_a_card_that_was_edited_is_kept(self, site: Site) -> None:
        repo = site.hub.repos["org/edited"] = Repo()
        card = site.files["README.md"].decode().replace("license: mit", "license: apache-2.0").replace("## Limits", "## My limits")
        old = re.sub("Weights: .* numbers", "Weights: 5 numbers", card)
        repo.commit({"README.md": old.encode()})
        site.push("org/edited", token=TOKEN)
        assert repo.commits[repo.refs["main"]]["README.md"].decode() == card

    def test_a_card_that_is_not_ours(self, site: Site) -> None:
        repo = site.hub.repos["org/website"] = Repo()
        repo.commit({"README.md": b"---\nlicense: apache-2.0\n---\nMy own words.\n"})
        for _ in range(2):
            site.push("org/website", token=TOKEN)
            card = repo.commits[repo.refs["main"]]["README.md"].decode()
            for written in (
                "license: apache-2.0\n",
                "library_name: gentransforms\n",
                "- Licence: apache-2.0\n",
                "- Weights: ",
                "\nMy own words.",
            ):
                assert card.count(written) == 1, written

    def test_a_card_that_cannot_be_fetched(self, site: Site) -> None:
        for _ in range(2):
            site.push("org/unreachable", token=TOKEN)  # after the second time, the cache has the card
        repo = site.hub.repos["org/unreachable"]
        before = repo.commit({"README.md": site.files["README.md"] + b"My own words.\n"})
        with site.hub.that(lost="README.md"), pytest.raises(WeightsError, match=r"^org/unreachable: the upload failed: "):
            site.push("org/unreachable", token=TOKEN)
        assert repo.refs["main"] == before
        site.push("org/unreachable", token=TOKEN)
        assert b"My own words." in repo.commits[repo.refs["main"]]["README.md"]

    def test_a_card_with_broken_metadata(self, site: Site) -> None:
        site.hub.repos["org/broken"] = Repo()
        site.hub.repos["org/broken"].commit({"README.md": b"---\nlicense: [mit\n---\n"})
        with pytest.raises(
            WeightsError, match=r"^org/broken: the upload failed: the YAML at the top of its README.md cannot be read .* try again$"
        ):
            site.push("org/broken", token=TOKEN)

    def test_an_empty_card_begins_a_new_one(self, site: Site) -> None:
        repo = site.hub.repos["org/replaced"] = Repo()
        repo.commit({"README.md": b"my own words"})
        site.push("org/replaced", token=TOKEN, card={})
        text = repo.commits[repo.refs["main"]]["README.md"].decode()
        assert "my own words" not in text
        assert "saved with `save_pretrained`" in text

    @pytest.mark.parametrize("ours", [False, True])
    def test_sections_that_are_given_change_and_no_others(self, site: Site, ours: bool) -> None:
        repo = site.hub.repos[f"org/sections-{ours}"] = Repo()
        repo.commit({"README.md": (site.files["README.md"] if ours else b"") + b"\nmy own words"})
        site.push(f"org/sections-{ours}", token=TOKEN, card={"description": "A new one.", "evaluation": "FID 400."})
        text = repo.commits[repo.refs["main"]]["README.md"].decode()
        for words in ("my own words", "A new one.", "## Evaluation\n\nFID 400.", "- Weights: ", "license: mit\n"):
            assert text.count(words) == 1, words
        assert "saved with `save_pretrained`" not in text

    def test_a_card_travels_with_its_generator(self, site: Site, tmp_path: Path) -> None:
        """From a folder to one repository and the next, through a process that knows the repository alone."""
        gt.load_generator(site.folder).save_pretrained(tmp_path, card={"training_data": "My flowers.", "evaluation": "FID 4."})
        repo = site.hub.repos["org/first"] = Repo()
        repo.commit({path.name: path.read_bytes() for path in tmp_path.iterdir()})
        site.online.submit(hub_client.push, "org/first", "org/second", token=TOKEN).result()
        repo = site.hub.repos["org/second"]
        assert repo.commits[repo.refs["main"]]["README.md"].decode() == (tmp_path / "README.md").read_text()

    def test_a_card_on_another_branch(self, site: Site) -> None:
        repo = site.hub.repos["org/branches"] = Repo()
        repo.commit({"README.md": b"on main"})
        repo.commit({"README.md": b"on the branch"}, "new")
        site.push("org/branches", token=TOKEN, revision="new")
        assert repo.commits[repo.refs["new"]]["README.md"].endswith(b"\non the branch\n")

    def test_server_down(self, site: Site) -> None:
        with site.hub.down(), pytest.raises(WeightsError, match="org/down: the upload failed: "):
            site.push("org/down", token=TOKEN)


class TestSource:
    """What a name stands for."""

    @pytest.mark.parametrize("name", ["nothing", "a/b/c", "./org/name", "~/name", "/org/name", "org/", "", "a" * 300, "org\\name"])
    def test_no_folder_and_no_repository(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(WeightsError, match="neither a folder nor a bundled generator") as caught:
            gt.load_generator(name)
        assert repr(name) in str(caught.value)

    def test_folder_wins_over_a_repository(self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org").mkdir()
        (tmp_path / "org" / "name").symlink_to(site.folder)
        assert gt.load_generator("org/name").fingerprint() == site.fingerprint

    @pytest.mark.parametrize("files", [(), ("bank.json",), ("README.md", "a.png")])
    def test_a_folder_without_a_model_does_not_hide_a_bundled_one(
        self, files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "icgan-cifar10-32").mkdir()
        for name in files:
            (tmp_path / "icgan-cifar10-32" / name).touch()
        source = hub_module.Source("icgan-cifar10-32")
        assert (source.folder, source.name) == (hub_module.BUNDLED / "icgan-cifar10-32", "icgan-cifar10-32")
        with pytest.raises(WeightsError, match=r"^\./icgan-cifar10-32: no file 'config\.json' in this folder: expected .*pretrained$"):
            gt.ICGAN.from_pretrained("./icgan-cifar10-32")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model_index.json"])
    def test_a_model_of_a_bundled_name_does(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "icgan-cifar10-32").mkdir()
        (tmp_path / "icgan-cifar10-32" / name).touch()
        assert hub_module.Source("icgan-cifar10-32").folder == Path("icgan-cifar10-32")

    def test_a_folder_that_hides_a_repository_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "bank").mkdir(parents=True)
        (tmp_path / "org" / "bank" / "bank.json").touch()
        for load in (gt.load_generator, gt.ICGAN.from_pretrained):
            with pytest.raises(WeightsError, match=r"^org/bank: .*it hides the repository of that name on the Hub: .* rename the folder"):
                load("org/bank")
        (tmp_path / "org" / "bank" / "config.json").write_text("{")  # a model, though a damaged one
        with pytest.raises(WeightsError, match="is not JSON"):
            gt.load_generator("org/bank")

    def test_bundled_names(self) -> None:
        assert "icgan-cifar10-32" in hub_module.bundled_names()
        assert hub_module.Source("icgan-cifar10-32").folder == hub_module.BUNDLED / "icgan-cifar10-32"

    def test_revision_of_a_folder(self, site: Site) -> None:
        for load in (gt.load_generator, gt.ICGAN.from_pretrained):
            with pytest.raises(ConfigError, match=f"revision='main': '{site.folder}' is a folder"):
                load(site.folder, revision="main")


# What stands in a file that is damaged, and a word of what is said of it.
DAMAGE: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"format": "gentransforms", "format_ver', "is not JSON"),
    "empty": (b"", "is not JSON"),
    "no text": (b"\xff\xfe{}", "is not JSON"),
    "not JSON": (b"<html>Sign in</html>", "is not JSON"),
    "a list": (b"[1, 2]", "holds a list"),
    "a string": (b'"gentransforms"', "holds a str"),
}
INDEX = b'{"_class_name": "StableUnCLIPImg2ImgPipeline", "_diffusers_version": "0.35.0"}'
OTHERS = b'{"_class_name": "UNet2DConditionModel", "sample_size": 8}'


class TestWhichGenerator:
    """A diffusers pipeline is taken for one of others only where it is known that no config of ours is beside it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "model_index.json").write_bytes(INDEX)
        return tmp_path

    @pytest.fixture
    def repo(self, site: Site, request: pytest.FixtureRequest) -> str:
        name = f"which/{request.node.originalname.removeprefix('test_').replace('_', '-')}"
        site.hub.repos[name] = Repo()
        site.hub.repos[name].commit({"model_index.json": INDEX})
        return name

    @pytest.mark.parametrize("config", [None, OTHERS])
    def test_folder_of_others(self, folder: Path, config: bytes | None) -> None:
        if config is not None:
            (folder / "config.json").write_bytes(config)
        assert hub_module.own_config(hub_module.Source(folder)) is None
        assert find_class(hub_module.Source(folder)) is gt.StableDiffusionVariation

    @pytest.mark.parametrize("name", ["config.json", "model_index.json"])
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_file(self, folder: Path, name: str, damage: str) -> None:
        content, words = DAMAGE[damage]
        (folder / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"(?s){folder}: {name} {words}"):
            gt.load_generator(folder)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_file_by_class(self, folder: Path, damage: str) -> None:
        (folder / "config.json").write_bytes(DAMAGE[damage][0])
        with pytest.raises(WeightsError, match=rf"(?s){folder}: config.json {DAMAGE[damage][1]}"):
            gt.StableDiffusionVariation.from_pretrained(folder)

    def test_not_a_file(self, folder: Path) -> None:
        (folder / "config.json").symlink_to(folder / "gone.json")
        with pytest.raises(WeightsError, match=rf"{folder}: 'config.json' is not a file"):
            gt.load_generator(folder)
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        with pytest.raises(WeightsError, match=rf"{folder}: 'config.json' is not a file"):
            gt.load_generator(folder)

    @pytest.mark.parametrize("method", ["read_text", "lstat"])
    def test_unreadable_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        (folder / "config.json").write_bytes(OTHERS)
        real = getattr(Path, method)

        def refuse(path: Path, *args: Any, **options: Any) -> Any:
            if path.name == "config.json":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **options)

        monkeypatch.setattr(Path, method, refuse)
        with pytest.raises(WeightsError, match=rf"{folder}: '?config.json'? cannot be read: Permission denied"):
            gt.load_generator(folder)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_file_on_the_hub(self, site: Site, repo: str, tmp_path: Path, damage: str) -> None:
        site.hub.repos[repo].commit({"config.json": DAMAGE[damage][0]})
        with pytest.raises(WeightsError, match=rf"(?s){repo}: config.json {DAMAGE[damage][1]}"):
            site.class_name(repo, cache_dir=tmp_path)

    def test_repository_of_others(self, site: Site, repo: str, tmp_path: Path) -> None:
        """Known without a network too, once it was asked."""
        with pytest.raises(WeightsError, match=rf"{repo}: 'config\.json' is not in the local cache"):
            site.class_name(repo, cache_dir=tmp_path, offline=True)
        for options in ({}, {"offline": True}, {"local_files_only": True}):
            assert site.class_name(repo, cache_dir=tmp_path, **options) == "StableDiffusionVariation"

    def test_repository_of_others_downloaded_whole(self, site: Site, repo: str, tmp_path: Path) -> None:
        site.online.submit(hub_client.download, repo, tmp_path).result()
        if not hasattr(huggingface_hub, "get_cached_repo_tree"):
            pytest.skip("this huggingface_hub keeps no list of what a repository holds")
        assert site.class_name(repo, cache_dir=tmp_path, offline=True) == "StableDiffusionVariation"

    def test_only_the_index_is_in_the_cache(self, site: Site, model: str, tmp_path: Path) -> None:
        """Of a generator that was saved by us: what diffusers alone downloads does not show it."""
        commit = site.hub.repos[model].commit({"model_index.json": INDEX})
        snapshot = tmp_path / f"models--{model.replace('/', '--')}" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "model_index.json").write_bytes(INDEX)
        with pytest.raises(WeightsError, match=rf"{model}: 'config\.json' at revision '{commit}' is not in the local cache"):
            site.class_name(model, cache_dir=tmp_path, revision=commit, offline=True)
        assert site.class_name(model, cache_dir=tmp_path, revision=commit) == "ICGAN"

    def test_server_in_trouble(self, site: Site, repo: str, tmp_path: Path) -> None:
        with site.hub.that(answer="503"), pytest.raises(WeightsError, match=rf"{repo}: 'config\.json' .*could not be fetched"):
            site.class_name(repo, cache_dir=tmp_path)


class TestLicenseFromTheHub:
    """A generator keeps its licence on the way from one repository to the next, and to the cards of its banks."""

    @staticmethod
    def of(site: Site, name: str, *, offline: bool = False, **options: Any) -> tuple[str | None, str | None, float]:
        process = site.offline if offline else site.online
        return process.submit(hub_client.license_of, name, **options).result()

    def test_is_that_of_the_card(self, site: Site, model: str, tmp_path: Path) -> None:
        repo = site.hub.repos[model]
        assert self.of(site, model, cache_dir=tmp_path) == ("mit", None, 0)
        repo.commit({"README.md": b"---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n"})
        assert self.of(site, model, cache_dir=tmp_path) == ("ours", f"{site.hub.endpoint}/{model}/blob/main/LICENSE", 0)

    def test_without_a_card(self, site: Site, model: str, tmp_path: Path) -> None:
        repo = site.hub.repos[model]
        del repo.commits[repo.refs["main"]]["README.md"]
        assert self.of(site, model, cache_dir=tmp_path)[0] is None
        with site.hub.recorded() as requests:
            assert self.of(site, model, revision=repo.refs["main"], cache_dir=tmp_path)[0] is None
        assert requests == []

    def test_offline(self, site: Site, model: str) -> None:
        assert self.of(site, model)[0] == "mit"
        for options in ({"offline": True}, {"local_files_only": True}):
            with site.hub.recorded() as requests:
                assert self.of(site, model, **options)[0] == "mit"
            assert requests == []

    def test_a_card_that_was_never_downloaded_is_not_waited_for(self, site: Site, model: str, tmp_path: Path) -> None:
        commit = site.hub.repos[model].refs["main"]
        site.load(model, revision=commit, cache_dir=tmp_path)
        (card,) = tmp_path.rglob("README.md")
        card.unlink()
        for trouble in (site.hub.down(), site.hub.that(answer="503"), site.hub.that(answer="hang up")):
            with trouble:
                assert self.of(site, model, revision=commit, cache_dir=tmp_path) == (None, None, 0)
        assert self.of(site, model, revision=commit, cache_dir=tmp_path)[0] == "mit"

    def test_goes_into_the_next_card(self, site: Site, model: str) -> None:
        site.online.submit(hub_client.push, model, "org/next", token=TOKEN).result()
        repo = site.hub.repos["org/next"]
        assert "license: mit\n" in repo.commits[repo.refs["main"]]["README.md"].decode()


class TestReadLicense:
    """What the card in a folder states."""

    @pytest.mark.parametrize(
        ("card", "found"),
        [
            ("---\nlicense: mit\n---\n# Card", "mit"),
            ("---\r\nlicense: mit\r\n---\r\n", "mit"),
            ("\ufeff---\nlicense: mit\n---\n", "mit"),
            ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
            ("---\nlicense: other\nlicense_name: ours\n---\n", "ours"),
            ("---\nlicense: {\n---\n", None),
            ("# Card", None),
        ],
    )
    def test_found(self, card: str, found: str | None, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_bytes(card.encode())
        assert hub_module.read_license(hub_module.Source(tmp_path)).name == found
