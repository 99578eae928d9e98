"""Seeds and the noise drawn from them, against hashlib, torch itself, the paper's algorithm and closed forms."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentransforms.errors import ConfigError
from gentransforms.seeding import check_seeds, derive_seeds, sample_noise, sample_truncated_noise, seed_uniforms

INT64 = st.integers(-(2**63), 2**63 - 1)
META = torch.zeros(2, dtype=torch.int64, device="meta")
# What is not (B,) int64 on the CPU.
NOT_SEEDS = [[1, 2], 7, torch.tensor([1.0]), torch.tensor([1], dtype=torch.int32), torch.tensor(1), torch.tensor([[1, 2]]), META]


def blake(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def kolmogorov_smirnov(values: np.ndarray, distribution: np.ndarray) -> float:
    """The statistic times the square root of n: above 1.63 in one of a hundred fixed seeds."""
    n = len(values)
    ranks = np.arange(n)
    return float(max((distribution - ranks / n).max(), ((ranks + 1) / n - distribution).max()) * math.sqrt(n))


class TestDeriveSeeds:
    @pytest.mark.parametrize(
        ("base", "key", "variant", "text"),
        [
            (0, "cat.jpg", 0, b'[0,"cat.jpg",0]'),
            (0, "cat.jpg", 1, b'[0,"cat.jpg",1]'),
            (0, 7, 0, b"[0,7,0]"),
            (-3, -1, -2, b"[-3,-1,-2]"),
            (2**70, "1", 0, b'[1180591620717411303424,"1",0]'),
            (0, 'é\n"\\', 0, b'[0,"\\u00e9\\n\\"\\\\",0]'),
            (0, "", 0, b'[0,"",0]'),
        ],
    )
    def test_is_63_bits_of_blake2b_over_the_json(self, base: int, key: str | int, variant: int, text: bytes) -> None:
        assert derive_seeds(base, [key], [variant]).tolist() == [blake(text)]

    def test_pinned(self) -> None:
        # From `printf '[0,"cat.jpg",0]' | b2sum -l 64`: 4c95f9facf6033f7. Changing these breaks every bank.
        seeds = derive_seeds(0, ["cat.jpg", "cat.jpg", 7], [0, 1, 0])
        assert seeds.tolist() == [
            0x4C95F9FACF6033F7 >> 1,
            6040139011649288081,
            63233464462989666,
        ]

    def test_shape_dtype_device_and_range(self) -> None:
        seeds = derive_seeds(1, list(range(1000)), [0] * 1000)
        assert seeds.shape == (1000,)
        assert seeds.dtype == torch.int64
        assert seeds.device.type == "cpu"
        assert seeds.min() >= 0
        # All 63 bits are used: each is set in about half of the seeds (4 standard deviations).
        bits = [(seeds >> bit & 1).sum().item() for bit in range(63)]
        assert all(abs(count - 500) < 4 * math.sqrt(250) for count in bits)

    def test_of_nothing_is_nothing(self) -> None:
        seeds = derive_seeds(0, [], [])
        assert seeds.shape == (0,)
        assert seeds.dtype == torch.int64

    def test_pairs_rather_than_all_combinations(self) -> None:
        together = derive_seeds(5, ["a", "b", "a"], [0, 1, 2])
        assert together.tolist() == [derive_seeds(5, [k], [v]).item() for k, v in (("a", 0), ("b", 1), ("a", 2))]

    def test_text_and_number_differ(self) -> None:
        assert derive_seeds(0, ["1"], [0]) != derive_seeds(0, [1], [0])

    @pytest.mark.parametrize(("one", "other"), [((0, "a", 11), (0, "a1", 1)), ((1, "2", 3), (12, "", 3)), ((0, "a,1", 2), (0, "a", 12))])
    def test_no_two_triples_run_together(self, one: tuple[int, str, int], other: tuple[int, str, int]) -> None:
        assert derive_seeds(one[0], [one[1]], [one[2]]) != derive_seeds(other[0], [other[1]], [other[2]])

    @given(st.lists(st.tuples(st.text() | INT64, INT64), unique=True, max_size=20), INT64)
    def test_distinct_pairs_have_distinct_seeds(self, pairs: list[tuple[str | int, int]], base: int) -> None:
        seeds = derive_seeds(base, [key for key, _ in pairs], [variant for _, variant in pairs])
        assert len(set(seeds.tolist())) == len(pairs)

    def test_the_base_seed_changes_every_seed(self) -> None:
        keys = list(range(100))
        assert not set(derive_seeds(0, keys, keys).tolist()) & set(derive_seeds(1, keys, keys).tolist())

    @pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor])
    def test_any_integer_type_is_an_integer(self, kind: type) -> None:
        assert derive_seeds(kind(2), [kind(3)], [kind(4)]).equal(derive_seeds(2, [3], [4]))

    def test_numpy_text_is_text(self) -> None:
        assert derive_seeds(0, [np.str_("a")], [0]).equal(derive_seeds(0, ["a"], [0]))

    def test_arrays_and_ranges_are_lists(self) -> None:
        assert derive_seeds(0, np.arange(3), range(3)).equal(derive_seeds(0, [0, 1, 2], [0, 1, 2]))

    @pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(1), None, b"1", (1,)])
    @pytest.mark.parametrize("place", ["base_seed", "keys", "variants"])
    def test_another_type_is_refused_by_name(self, place: str, value: object) -> None:
        arguments = {"base_seed": 0, "keys": ["a"], "variants": [0]}
        arguments[place] = value if place == "base_seed" else [value]
        with pytest.raises(ConfigError, match=place):
            derive_seeds(**arguments)

    @pytest.mark.parametrize("place", ["base_seed", "variants"])
    def test_text_is_for_keys_alone(self, place: str) -> None:
        arguments = {"base_seed": 0, "keys": ["a"], "variants": [0]}
        arguments[place] = "1" if place == "base_seed" else ["1"]
        with pytest.raises(ConfigError, match=place):
            derive_seeds(**arguments)

    @pytest.mark.parametrize(("keys", "variants"), [(["a"], []), ([], [0]), (["a", "b"], [0, 1, 2])])
    def test_unequal_lengths_are_refused(self, keys: list[str], variants: list[int]) -> None:
        with pytest.raises(ConfigError, match=f"{len(keys)} entries .* {len(variants)}"):
            derive_seeds(0, keys, variants)

    def test_a_lone_text_is_not_a_list_of_letters(self) -> None:
        with pytest.raises(ConfigError, match=r"\['ab'\]"):
            derive_seeds(0, "ab", [0, 1])


class TestSampleNoise:
    # Below and above 16 numbers, where torch fills tensors in two ways; odd counts; a lone number.
    SHAPES = ((), (1,), (3,), (15,), (16,), (17,), (3, 8, 8), (2, 5, 7))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_each_row_is_torch_randn_of_its_seed(self, shape: tuple[int, ...]) -> None:
        seeds = torch.tensor([0, 1, 2**31, 2**63 - 1, 1])
        noise = sample_noise(seeds, shape)
        assert noise.shape == (5, *shape)
        assert noise.dtype == torch.float32
        assert noise.device.type == "cpu"
        for row, seed in zip(noise, seeds.tolist(), strict=True):
            assert row.equal(torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)))

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
    def test_a_row_does_not_depend_on_the_rows_beside_it(self, seeds: list[int], random: object) -> None:
        order = list(range(len(seeds)))
        random.shuffle(order)
        noise = sample_noise(torch.tensor(seeds), (4,))
        assert noise[order].equal(sample_noise(torch.tensor(seeds)[order], (4,)))

    def test_leaves_the_global_random_state(self) -> None:
        before = torch.get_rng_state()
        sample_noise(torch.tensor([1]), (4,))
        sample_truncated_noise(torch.tensor([1]), (4,), 1.0)
        assert torch.get_rng_state().equal(before)

    def test_of_no_seeds(self) -> None:
        assert sample_noise(torch.empty(0, dtype=torch.int64), (3, 4)).shape == (0, 3, 4)

    def test_whatever_torchs_defaults_are(self) -> None:
        seeds = torch.tensor([1, 2])
        expected = sample_noise(seeds, (20,))
        torch.set_default_dtype(torch.float64)
        try:
            wide = sample_noise(seeds, (20,))
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            elsewhere = sample_noise(seeds, (20,))
            assert derive_seeds(0, ["a"], [0]).device.type == "cpu"
        assert wide.dtype == torch.float32
        assert wide.equal(expected)
        assert elsewhere.equal(expected)

    @pytest.mark.parametrize("seeds", NOT_SEEDS, ids=repr)
    def test_other_seeds_are_refused(self, seeds: object) -> None:
        with pytest.raises(ConfigError, match="seeds"):
            sample_noise(seeds, (3,))


class TestSampleTruncatedNoise:
    @pytest.mark.parametrize("bound", [0.01, 0.5, 1.4, 4.0, 10.0])
    def test_stays_within_the_bounds(self, bound: float) -> None:
        noise = sample_truncated_noise(torch.arange(20), (1000,), bound)
        assert noise.shape == (20, 1000)
        assert noise.dtype == torch.float32
        assert noise.isfinite().all()
        assert noise.abs().max() <= bound

    @pytest.mark.parametrize("bound", [0.5, 1.4, 3.0])
    def test_has_the_truncated_normal_distribution(self, bound: float) -> None:
        values = np.sort(sample_truncated_noise(torch.arange(20), (1000,), bound).double().flatten().numpy())
        normal = np.vectorize(NormalDist().cdf)
        low, high = normal([-bound, bound])
        assert kolmogorov_smirnov(values, (normal(values) - low) / (high - low)) < 1.63

    @pytest.mark.parametrize("bound", [8.0, 1000.0])
    def test_no_number_is_as_far_as_a_far_bound(self, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = torch.tensor([[0.0, 1 - 2**-24]])  # the smallest and the largest uniform number
        monkeypatch.setattr("gentransforms.seeding._rows", lambda *_: ends.clone())
        low, high = sample_truncated_noise(torch.tensor([1]), (2,), bound)[0].tolist()
        assert -5.6 < low < -5
        assert 5 < high < 5.6

    def test_differs_from_the_untruncated(self) -> None:
        # The test above can fail: the same statistic against the whole normal distribution.
        values = np.sort(sample_truncated_noise(torch.arange(20), (1000,), 1.4).double().flatten().numpy())
        assert kolmogorov_smirnov(values, np.vectorize(NormalDist().cdf)(values)) > 5

    def test_is_the_inverse_of_the_seeds_uniform_numbers(self) -> None:
        bound, seed, normal = 1.4, 42, NormalDist()
        uniform = torch.rand(50, generator=torch.Generator("cpu").manual_seed(seed)).tolist()
        low, high = normal.cdf(-bound), normal.cdf(bound)
        expected = [normal.inv_cdf(low + u * (high - low)) for u in uniform]
        np.testing.assert_allclose(sample_truncated_noise(torch.tensor([seed]), (50,), bound)[0], expected, atol=2e-6)

    def test_a_row_comes_from_its_seed_alone(self) -> None:
        together = sample_truncated_noise(torch.tensor([3, 1, 3]), (9,), 1.0)
        assert together[0].equal(together[2])
        assert together[1:2].equal(sample_truncated_noise(torch.tensor([1]), (9,), 1.0))

    @pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf")])
    def test_other_bounds_are_refused(self, bound: float) -> None:
        with pytest.raises(ConfigError, match="bound"):
            sample_truncated_noise(torch.tensor([1]), (3,), bound)

    @pytest.mark.parametrize("seeds", NOT_SEEDS, ids=repr)
    def test_other_seeds_are_refused(self, seeds: object) -> None:
        with pytest.raises(ConfigError, match="seeds"):
            sample_truncated_noise(seeds, (3,), 1.0)


def splitmix64(seed: int) -> float:
    """The first output of SplitMix64 (Steele, Lea and Flood, 2014) as the usual double in [0, 1)."""
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


class TestSeedUniforms:
    def test_the_reference_is_splitmix64(self) -> None:
        # The published first output for state 0 is 0xe220a8397b1dcdaf.
        assert splitmix64(0) == (0xE220A8397B1DCDAF >> 11) / 2**53

    @given(st.lists(INT64, min_size=1, max_size=20))
    def test_is_splitmix64(self, seeds: list[int]) -> None:
        assert seed_uniforms(torch.tensor(seeds, dtype=torch.int64)).tolist() == [splitmix64(seed % 2**64) for seed in seeds]

    def test_lies_in_the_unit_interval_and_is_uniform(self) -> None:
        uniforms = seed_uniforms(torch.arange(20_000))
        assert uniforms.dtype == torch.float64
        values = np.sort(uniforms.numpy())
        assert values[0] >= 0
        assert values[-1] < 1
        assert kolmogorov_smirnov(values, values) < 1.63

    def test_is_unrelated_to_the_noise(self) -> None:
        seeds = torch.arange(4000)
        pair = torch.stack([seed_uniforms(seeds), sample_noise(seeds, (1,))[:, 0].double()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / math.sqrt(len(seeds))

    def test_does_not_change_its_input_or_the_random_state(self) -> None:
        seeds, state = torch.arange(5), torch.get_rng_state()
        seed_uniforms(seeds)
        assert seeds.tolist() == [0, 1, 2, 3, 4]
        assert torch.get_rng_state().equal(state)


class TestCheckSeeds:
    def test_returns_the_tensor_itself(self) -> None:
        seeds = torch.tensor([4, 5])
        assert check_seeds(seeds, 2) is seeds

    @pytest.mark.parametrize(
        ("seeds", "found"),
        [
            ([1, 2], "list"),
            (torch.tensor([1.0, 2.0]), "torch.float32"),
            (torch.tensor([1, 2], dtype=torch.int32), "torch.int32"),
            (torch.tensor([True, False]), "torch.bool"),
            (torch.tensor([1, 2, 3]), r"\(3,\)"),
            (torch.tensor([[1], [2]]), r"\(2, 1\)"),
            (torch.tensor(1), r"\(\)"),
            (META, "meta"),
        ],
        ids=str,
    )
    def test_says_what_it_found(self, seeds: object, found: str) -> None:
        with pytest.raises(ConfigError, match=found):
            check_seeds(seeds, 2)
