"""Banks on the Hub: the real clients, in a process of their own, against a server on this machine."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import hub_client
import pytest
from hub_server import TOKEN, Hub, Repo
from small_banks import KEYS, make_bank, pixels, png

import gentransforms as gt
from gentransforms.bank.share.export import export_bank
from gentransforms.errors import BankError

FAILED = {KEYS[0]: "a text file", KEYS[5]: "truncated"}
REJECTED = {(KEYS[2], 1): "the generator made NaN or infinity", (KEYS[9], 2): "similarity 0.1"}
ROWS = [
    (key, v, png(i, v)) for i, key in enumerate(KEYS) for v in range(3) if key not in FAILED and (key, v) not in REJECTED
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Site:
    """The server, a process that may reach it, one that is told to be offline, and the bank that all tests share."""

    hub: Hub
    online: ProcessPoolExecutor
    offline: ProcessPoolExecutor
    bank: Path
    files: dict[str, bytes]
    home: Path

    def add(self, name: str, files: dict[str, bytes] | None = None) -> Repo:
        """A data set repository that holds files; those of the exported bank, by default."""
        repo = self.hub.repos[f"datasets/{name}"] = Repo()
        repo.commit(self.files if files is None else files)
        return repo

    def read(self, name: str, revision: str | None = None, *, offline: bool = False, token: str | None = None) -> dict[str, Any]:
        process = self.offline if offline else self.online
        return process.submit(hub_client.read_bank, name, revision, token=token).result()

    def push(self, repo_id: str, bank: Path | None = None, **options: Any) -> str:
        return self.online.submit(hub_client.push_bank, str(bank or self.bank), repo_id, **options).result()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    hub, home, folder = Hub(), tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("banks")
    bank = make_bank(folder / "bank", failed=FAILED, rejected=REJECTED)
    export_bank(gt.Bank.open(bank), folder / "export", shard_bytes=500)
    with hub_client.process(hub.endpoint, home) as online, hub_client.process(hub.endpoint, home, offline=True) as offline:
        yield Site(hub, online, offline, bank, files_of(folder / "export"), home)
    hub.close()


@pytest.fixture
def name(site: Site, request: pytest.FixtureRequest) -> str:
    """A repository with the exported bank, whose name no other test uses."""
    name = f"org/{request.node.originalname.removeprefix('test_').replace('_', '-')}"
    site.add(name)
    return name


def forget(site: Site, name: str) -> None:
    """Remove what the Hub's client keeps of a data set."""
    shutil.rmtree(site.home / "hub" / f"datasets--{name.replace('/', '--')}")


class TestRoundTrip:
    """From a bank to the Hub, and back."""

    def test_same_keys_rows_and_bytes(self, site: Site) -> None:
        address = site.push("org/pushed", token=TOKEN, license="mit", description="Ten grey photos.")
        repo = site.hub.repos["datasets/org/pushed"]
        assert address == f"{site.hub.endpoint}/datasets/org/pushed/commit/{repo.refs['main']}"
        files = repo.commits[repo.refs["main"]]
        assert set(files) == {".gitattributes", "README.md", "bank.json", "data/train-00000-of-00001.parquet"}
        found = site.read("org/pushed")
        assert found["rows"] == ROWS
        assert found["length"] == len(ROWS)
        assert found["keys"] == [key for key in KEYS if key not in FAILED]
        original = gt.Bank.open(site.bank)
        expected = [row for batch in original.batches() for row in batch.select(["key", "variant", "seed", "attempt"]).to_pylist()]
        assert [row for rows in found["columns"] for row in rows] == expected
        assert (found["failed"], found["rejected"], found["settings"]) == (original.failed, original.rejected, original.settings)

    def test_its_card_says_where_it_is(self, site: Site) -> None:
        site.push("org/with-card", token=TOKEN, license="cc-by-nc-4.0", description="Ten grey photos.")
        repo = site.hub.repos["datasets/org/with-card"]
        card = repo.commits[repo.refs["main"]]["README.md"].decode()
        assert 'gt.Bank.open("org/with-card")' in card
        assert "license: cc-by-nc-4.0" in card
        assert "Ten grey photos." in card

    def test_int_keys(self, site: Site, tmp_path: Path) -> None:
        site.push("org/int-keys", make_bank(tmp_path / "bank", keys=[7, -1, 2**40], marked=True), token=TOKEN)
        assert site.read("org/int-keys")["keys"] == [7, -1, 2**40]

    def test_marks_of_the_sources(self, site: Site, tmp_path: Path) -> None:
        site.push("org/marked", make_bank(tmp_path / "bank", marked=True), token=TOKEN)
        for offline in (False, True):
            assert site.read("org/marked", offline=offline)["marks"] == [[10 * i] * 48 for i in range(len(KEYS))]

    def test_several_files(self, site: Site, name: str) -> None:
        assert sum(file.endswith(".parquet") for file in site.files) == 3
        assert site.read(name)["rows"] == ROWS

    def test_a_smaller_bank_over_a_larger_one_leaves_nothing_of_it(self, site: Site, tmp_path: Path) -> None:
        """The card's pattern takes every Parquet file there is, so files of the larger one would be rows of the smaller."""
        repo = site.add("org/twice")
        site.push("org/twice", make_bank(tmp_path / "bank", keys=KEYS[:2]), token=TOKEN)
        assert {file for file in repo.commits[repo.refs["main"]] if file.endswith(".parquet")} == {"data/train-00000-of-00001.parquet"}
        assert site.read("org/twice")["keys"] == KEYS[:2]

    def test_it_can_be_verified(self, site: Site, name: str) -> None:
        report = site.online.submit(hub_client.verify_bank, name).result()
        assert report.splitlines()[0].endswith(f": 3 files, {len(ROWS)} rows, {len(ROWS)} images decoded")
        assert report.splitlines()[-1] == "no problem"


class TestRevision:
    """Commits, tags and branches."""

    def test_each_gives_its_own(self, site: Site, name: str, tmp_path: Path) -> None:
        repo = site.hub.repos[f"datasets/{name}"]
        first = repo.refs["v1"] = repo.refs["main"]
        site.push(name, make_bank(tmp_path / "bank", keys=KEYS[:3]), token=TOKEN)
        assert repo.refs["main"] != first
        for revision, keys in {"v1": 8, first: 8, "main": 3, None: 3, repo.refs["main"]: 3}.items():
            assert len(site.read(name, revision)["keys"]) == keys

    def test_a_commit_that_is_there_is_not_asked_for_again(self, site: Site, name: str) -> None:
        commit = site.hub.repos[f"datasets/{name}"].refs["main"]
        assert site.read(name, commit)["rows"] == ROWS
        with site.hub.recorded() as requests:
            assert site.read(name, commit)["rows"] == ROWS
        assert requests == []

    def test_a_branch_is_asked_for_and_not_fetched_again(self, site: Site, name: str) -> None:
        site.read(name)
        with site.hub.recorded() as requests:
            site.read(name)
        assert [request.route for request in requests] == [f"HEAD /datasets/{name}/resolve/main/bank.json"]

    def test_unknown(self, site: Site, name: str) -> None:
        with pytest.raises(BankError, match=f"^{name}: the Hub has no such revision: 'v9'$"):
            site.read(name, "v9")


class TestNoNetwork:
    """Offline, and servers in trouble."""

    def test_offline_from_the_cache(self, site: Site, name: str) -> None:
        with pytest.raises(BankError, match=rf"^{name}: 'bank\.json' is not in the local cache and could not be fetched; check"):
            site.read(name, offline=True)
        site.read(name)
        with site.hub.recorded() as requests:
            assert site.read(name, offline=True)["rows"] == ROWS
            assert site.read(name, site.hub.repos[f"datasets/{name}"].refs["main"], offline=True)["rows"] == ROWS
        assert requests == []

    def test_offline_a_revision_is_that_revision(self, site: Site, name: str, tmp_path: Path) -> None:
        """`datasets.load_dataset("org/name", revision=…)` takes the latest that it has, whichever was asked for."""
        repo = site.hub.repos[f"datasets/{name}"]
        first = repo.refs["main"]
        assert len(site.read(name)["keys"]) == 8
        site.push(name, make_bank(tmp_path / "bank", keys=KEYS[:3]), token=TOKEN)
        assert len(site.read(name)["keys"]) == 3
        assert len(site.read(name, first, offline=True)["keys"]) == 8
        assert len(site.read(name, repo.refs["main"], offline=True)["keys"]) == 3
        assert len(site.read(name, offline=True)["keys"]) == 3

    def test_offline_with_only_a_part_in_the_cache(self, site: Site, name: str) -> None:
        site.read(name)
        next((site.home / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots").rglob("train-00001*")).unlink()
        with pytest.raises(BankError, match=rf"^{name}: .*(not in the local cache|could not be fetched)"):
            site.read(name, offline=True)
        assert site.read(name)["rows"] == ROWS

    @pytest.mark.parametrize("trouble", [lambda hub: hub.down(), lambda hub: hub.that(answer="503")], ids=["refuses", "503"])
    def test_server_in_trouble(self, site: Site, name: str, trouble: Callable[[Hub], Any]) -> None:
        with trouble(site.hub), pytest.raises(BankError, match=rf"^{name}: 'bank\.json' .* could not be fetched; check the network$"):
            site.read(name)
        assert site.read(name)["rows"] == ROWS
        with trouble(site.hub):
            assert site.read(name)["rows"] == ROWS
        forget(site, name)

    def test_server_breaks_down_between_the_files(self, site: Site, name: str) -> None:
        file = "data/train-00002-of-00003.parquet"
        with site.hub.that(cut=file), pytest.raises(BankError, match=rf"^{name}: .*could not be fetched") as refused:
            site.read(name)
        assert "\n" not in str(refused.value)
        assert site.read(name)["rows"] == ROWS  # nothing half is left in the cache

    def test_push_to_a_server_that_is_down(self, site: Site) -> None:
        with site.hub.down(), pytest.raises(BankError, match=r"^org/down: the upload failed: ") as refused:
            site.push("org/down", token=TOKEN)
        assert "\n" not in str(refused.value)


class TestPrivate:
    """Tokens: of the login, as huggingface_hub has it."""

    def test_only_with_a_token(self, site: Site) -> None:
        site.push("org/private", token=TOKEN, private=True)
        assert site.hub.repos["datasets/org/private"].private
        with pytest.raises(
            BankError,
            match=r"^org/private: no such directory, and no such data set on the Hub, or it is private: check",
        ):
            site.read("org/private")
        assert site.read("org/private", token=TOKEN)["rows"] == ROWS

    def test_gated(self, site: Site, name: str) -> None:
        site.hub.repos[f"datasets/{name}"].gated = True
        page = rf"http://127.*/datasets/{name}, then log in with hf auth login, or set HF_TOKEN$"  # a bank is opened without token=
        with pytest.raises(BankError, match=rf"^{name}: .*is gated: accept its conditions at {page}"):
            site.read(name, token=TOKEN)

    def test_wrong_token(self, site: Site, name: str) -> None:
        with pytest.raises(BankError, match=rf"^{name}: 'bank\.json' could not be fetched: .*401") as refused:
            site.read(name, token="hf_wrong")
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        ("repo_id", "options", "reason"),
        [
            ("org/no-token", {}, "401"),
            ("org/wrong-token", {"token": "hf_wrong"}, "401"),
            ("org/na me", {"token": TOKEN}, "na me"),
            ("org/no-branch", {"token": TOKEN, "revision": "nothing"}, "nothing"),
        ],
    )
    def test_push_refused(self, site: Site, repo_id: str, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(BankError, match=f"^{repo_id}: the upload failed: .*{reason}") as refused:
            site.push(repo_id, **options)
        assert "\n" not in str(refused.value)

    def test_a_licence_that_the_hub_does_not_list(self, site: Site) -> None:  # it had been refused after the upload
        site.push("org/own-licence", token=TOKEN, license="Terms of Our Hospital")
        repo = site.hub.repos["datasets/org/own-licence"]
        card = repo.commits[repo.refs["main"]]["README.md"].decode()
        assert "\nlicense: other\n" in card
        assert "\nlicense_name: terms-of-our-hospital\n" in card
        assert "- Licence: Terms of Our Hospital\n" in card


def watched_push(folder: str, repo_id: str, shard_bytes: int, stop_after: int = 99, **options: Any) -> tuple[list[list[str]], str]:
    """Push a bank, in a client's process; return what lay in the folder as each file was written, and how the push ended."""
    from gentransforms.bank.share import export

    original, seen = export._write_files, list[list[str]]()

    def watched(bank: Any, directory: Path, _size: int, *how: Any) -> Iterator[Path]:
        for path in original(bank, directory, shard_bytes, *how):
            seen.append(sorted(file.name for file in directory.rglob("*") if file.is_file()))
            yield path
            if len(seen) == stop_after:
                raise OSError(28, "No space left on device")

    export._write_files = watched  # type: ignore[assignment]
    try:
        ended = hub_client.push_bank(folder, repo_id, **options)
    except BankError as error:
        ended = str(error)
    finally:
        export._write_files = original
    return seen, ended


class TestPushAgain:
    """A card that is there belongs to whoever edited it on the Hub."""

    @staticmethod
    def card(site: Site, repo_id: str) -> str:
        repo = site.hub.repos[f"datasets/{repo_id}"]
        return repo.commits[repo.refs["main"]]["README.md"].decode()

    def edit(self, site: Site, repo_id: str, old: str, new: str) -> None:
        card = self.card(site, repo_id)
        assert old in card
        site.hub.repos[f"datasets/{repo_id}"].commit({"README.md": card.replace(old, new).encode()})

    def test_what_was_written_stays_and_the_figures_are_new(self, site: Site, tmp_path: Path) -> None:
        site.push("org/edited", token=TOKEN, license="mit", description="Ten grey photos.")
        self.edit(site, "org/edited", "license: mit", "license: cc-by-nc-4.0\nlanguage: en")
        self.edit(site, "org/edited", "- Licence: mit", "- Licence: ask me")
        self.edit(site, "org/edited", "Ten grey photos.", "Ten photos, of which I am proud.")
        self.edit(site, "org/edited", "## Usage", "## How I use it")
        before = self.card(site, "org/edited")
        site.push("org/edited", token=TOKEN)
        assert self.card(site, "org/edited") == before
        site.push("org/edited", make_bank(tmp_path / "bank", keys=KEYS[:4]), token=TOKEN)
        after = self.card(site, "org/edited")
        assert "12, up to 3 variants of each of 4 source images" in after
        assert '"count": 4,' in after
        for kept in ("license: cc-by-nc-4.0\nlanguage: en", "- Licence: ask me", "Ten photos, of which I am proud.", "## How I use it"):
            assert kept in after

    def test_what_is_given_is_written(self, site: Site) -> None:
        site.push("org/given", token=TOKEN, license="mit")
        self.edit(site, "org/given", "## Usage", "## How I use it")
        site.push("org/given", token=TOKEN, license="Our Terms", description="Ten grey photos.")
        card = self.card(site, "org/given")
        for written in ("license: other\n", "license_name: our-terms\n", "- Licence: Our Terms", "Ten grey photos.", "## How I use it"):
            assert card.count(written) == 1, written
        assert "mit\n" not in card
        site.push("org/given", token=TOKEN, license="mit", description="Ten photos.")
        card = self.card(site, "org/given")
        assert "license: mit\n" in card
        assert all(gone not in card for gone in ("license_name", "Our Terms", "Ten grey"))

    def test_a_card_of_other_words_alone(self, site: Site) -> None:
        site.add("org/words", {"README.md": b"My words."})
        site.push("org/words", token=TOKEN)
        assert self.card(site, "org/words").endswith("\nMy words.\n")
        site.push("org/words", token=TOKEN, license="mit")
        card = self.card(site, "org/words")
        for written in ("license: mit\n", "- Licence: mit\n", "- Fingerprint: ", "path: data/train-*.parquet\n", "My words."):
            assert card.count(written) == 1, written

    def test_a_card_that_cannot_be_fetched(self, site: Site) -> None:
        repo = site.add("org/unreachable", {"README.md": b"My words."})
        before = repo.refs["main"]
        with (
            site.hub.that(lost="README.md"),
            pytest.raises(BankError, match=r"^org/unreachable: the upload failed: "),
        ):
            site.push("org/unreachable", token=TOKEN)
        assert repo.refs["main"] == before

    def test_a_repository_of_the_users_own(self, site: Site) -> None:
        for _ in range(2):
            assert site.push("my-bank", token=TOKEN).startswith(f"{site.hub.endpoint}/datasets/me/my-bank/commit/")
        assert 'gt.Bank.open("me/my-bank")' in self.card(site, "me/my-bank")
        assert site.read("me/my-bank")["rows"] == ROWS


class TestPushOneByOne:
    """A bank may be larger than the disk for temporary files, and than the patience of a network."""

    PARTS = tuple(f"train-{i:05d}-of-00003.parquet" for i in range(3))

    def puts(self, requests: list[Any]) -> int:
        return sum(request.route.startswith("PUT /lfs/") for request in requests)

    def test_the_disk_holds_one_file_at_a_time(self, site: Site) -> None:
        seen, address = site.online.submit(watched_push, str(site.bank), "org/thin", 500, token=TOKEN).result()
        assert seen == [[self.PARTS[0]], [self.PARTS[1]], [self.PARTS[2]], ["README.md"], ["README.md", "bank.json"]]
        assert address.endswith(site.hub.repos["datasets/org/thin"].refs["main"])
        assert site.read("org/thin")["rows"] == ROWS
        assert len(site.hub.repos["datasets/org/thin"].commits) == 2, "the repository's first, and one of the push"

    def test_an_interrupted_push_is_resumed(self, site: Site) -> None:
        bank = make_bank(site.home / "bank-resumed", size=(5, 7))
        _, ended = site.online.submit(watched_push, str(bank), "org/resumed", 500, 2, token=TOKEN).result()
        assert "No space left on device: one Parquet file" in ended
        assert "TMPDIR" in ended
        repo = site.hub.repos["datasets/org/resumed"]
        assert list(repo.commits[repo.refs["main"]]) == [".gitattributes"], "nobody sees half a bank"
        with site.hub.recorded() as requests:
            site.online.submit(watched_push, str(bank), "org/resumed", 500, token=TOKEN).result()
        assert self.puts(requests) == len(self.PARTS) - 2, "the first two are there already"
        assert site.read("org/resumed")["length"] == 30

    def test_a_smaller_bank_leaves_none_of_the_old_files(self, site: Site) -> None:
        site.online.submit(watched_push, str(site.bank), "org/smaller", 500, token=TOKEN).result()
        site.push("org/smaller", make_bank(site.home / "bank-smaller", keys=KEYS[:2]), token=TOKEN)
        repo = site.hub.repos["datasets/org/smaller"]
        assert [name for name in repo.commits[repo.refs["main"]] if name.startswith("data/")] == ["data/train-00000-of-00001.parquet"]
        assert site.read("org/smaller")["keys"] == KEYS[:2]


class TestAskedFirst:
    """A bank may be a terabyte: what the Hub refuses, it refuses before that is written."""

    @pytest.mark.parametrize(
        ("repo_id", "options"),
        [
            ("org/early-token", {"token": "hf_wrong"}),
            ("org/early na me", {"token": TOKEN}),
            ("org/early-branch", {"token": TOKEN, "revision": "nothing"}),
        ],
    )
    def test_nothing_is_exported_in_vain(self, site: Site, repo_id: str, options: dict[str, Any]) -> None:
        seen, ended = site.online.submit(watched_push, str(site.bank), repo_id, 500, **options).result()
        assert ended.startswith(f"{repo_id}: the upload failed: ")
        assert seen == []

    def test_to_a_branch_that_is_there(self, site: Site) -> None:
        repo = site.add("org/branch")
        repo.refs["v2"] = repo.refs["main"]
        before = repo.refs["main"]
        site.push("org/branch", make_bank(site.home / "bank-branch", keys=KEYS[:2]), token=TOKEN, revision="v2")
        assert repo.refs["main"] == before
        assert site.read("org/branch", "v2")["keys"] == KEYS[:2]

    def test_an_unfinished_bank_makes_no_repository(self, site: Site, tmp_path: Path) -> None:
        for name, options in {"empty": {"failed": dict.fromkeys(KEYS, "x")}, "unfinished": {"only": [0]}}.items():
            bank = make_bank(tmp_path / name, **options)  # type: ignore[arg-type]
            with pytest.raises(BankError):
                site.online.submit(push_partial, str(bank), f"org/{name}", token=TOKEN).result()
            assert f"datasets/org/{name}" not in site.hub.repos


def push_partial(folder: str, repo_id: str, **options: Any) -> str:
    return gt.Bank.open(folder, partial=True).push_to_hub(repo_id, **options)


class TestNoBank:
    """What a name may stand for besides a bank."""

    def test_no_repository(self, site: Site) -> None:
        with pytest.raises(BankError, match="org/nothing: no such directory, and no such data set on the Hub, or it is private"):
            site.read("org/nothing")

    def test_a_model_is_no_data_set(self, site: Site) -> None:
        site.hub.repos["org/model"] = Repo()
        site.hub.repos["org/model"].commit({"config.json": b"{}", "bank.json": site.files["bank.json"]})
        with pytest.raises(BankError, match="no such data set on the Hub"):
            site.read("org/model")

    def test_another_data_set(self, site: Site, name: str) -> None:
        site.add(name, {file: content for file, content in site.files.items() if file != "bank.json"})
        with pytest.raises(BankError, match=rf"^{name}: the data set has no file 'bank\.json': it is not a bank written by push_to_hub$"):
            site.read(name)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"/bank\.json: not JSON \(.*\): remove .* and open the bank again, which downloads it; .*, push the bank again"),
            ("{}", r"/bank\.json: not the manifest of a gentransforms bank"),
        ],
    )
    def test_a_manifest_that_is_none(self, site: Site, name: str, text: str, message: str) -> None:
        site.add(name, {**site.files, "bank.json": text.encode()})
        with pytest.raises(BankError, match=f"^{name}{message}$"):
            site.read(name)

    def test_a_newer_format(self, site: Site, name: str) -> None:
        manifest = json.loads(site.files["bank.json"]) | {"format_version": 99}
        site.add(name, {**site.files, "bank.json": json.dumps(manifest).encode()})
        with pytest.raises(BankError, match=f"^{name}/bank.json: format version 99 is newer than this library reads"):
            site.read(name)

    def test_the_units_of_a_bank_uploaded_as_they_are(self, site: Site, name: str) -> None:
        site.add(name, files_of(site.bank))
        with pytest.raises(BankError, match=f"^{name}/bank.json: lists no Parquet files, .*: export or push the bank again$"):
            site.read(name)

    def test_a_file_that_is_gone(self, site: Site, name: str) -> None:
        site.add(name, {file: content for file, content in site.files.items() if "00001-of" not in file})
        with pytest.raises(BankError, match=rf"^{name}: 'data/train-00001-of-00003\.parquet' .* push the bank again$"):
            site.read(name)

    def test_a_file_that_was_cut(self, site: Site, name: str) -> None:
        file = "data/train-00001-of-00003.parquet"
        site.add(name, {**site.files, file: site.files[file][:-5]})
        with pytest.raises(BankError, match=rf"^{name}: {file} has [\d,]+ bytes, expected [\d,]+: "):
            site.read(name)

    @pytest.mark.parametrize("file", ["bank.json", "data/train-00001-of-00003.parquet"])
    def test_a_file_that_was_cut_in_the_cache(self, site: Site, name: str, file: str) -> None:
        """The Hub's client takes a file that is there for whole; the advice makes it download the file again."""
        site.add(name, site.files)
        site.read(name)
        (cached,) = (site.home / "hub").glob(f"datasets--{name.replace('/', '--')}/snapshots/*/{file}")
        cached.write_bytes(cached.read_bytes()[:-5])
        with pytest.raises(BankError, match="which downloads it") as refused:
            site.read(name)
        (path,) = re.findall(r"remove (\S+) and open the bank again", str(refused.value))
        Path(path).unlink()
        assert site.read(name)["rows"] == ROWS

    def test_a_file_that_is_no_parquet(self, site: Site, name: str) -> None:
        file = "data/train-00001-of-00003.parquet"
        site.add(name, {**site.files, file: bytes(len(site.files[file]))})
        with pytest.raises(BankError, match=rf"^{name}: cannot be loaded as a data set: ") as refused:
            site.read(name)
        assert "\n" not in str(refused.value)


class TestOtherProcesses:
    """The opened bank travels to DataLoader workers."""

    @pytest.mark.parametrize("context", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
    def test_in_a_worker(self, site: Site, context: str) -> None:
        name = f"org/worker-{context}"
        site.push(name, make_bank(site.home / f"bank-{context}"), token=TOKEN)
        commit = site.hub.repos[f"datasets/{name}"].refs["main"]
        site.read(name)
        with site.hub.recorded() as requests:
            rows = site.online.submit(hub_client.read_in_a_worker, name, commit, context).result()
        assert [row[:2] for row in rows] == [(3 * i + v, pixels(i, v).tolist()) for i in range(len(KEYS)) for v in range(3)]
        assert requests == [], "a worker opens what is in the cache"
        assert {row[2] for row in rows} == {context == "fork"}, "and need not import datasets for that"

    def test_where_the_cache_of_datasets_is_gone_it_is_made_again(self, site: Site, name: str) -> None:
        site.read(name)
        shutil.rmtree(site.home / "datasets")
        with site.hub.recorded() as requests:
            assert site.read(name)["rows"] == ROWS
        assert {request.route.split()[0] for request in requests} == {"HEAD"}
