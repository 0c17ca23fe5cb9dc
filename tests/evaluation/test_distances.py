"""Distances of sets of features: against scipy, against closed forms, and their intervals against the truth."""

import json

import numpy as np
import pytest

from imagen_video_jax.evaluation import bootstrap, metrics, mmd
from imagen_video_jax.evaluation.frechet import Moments, frechet_distance, frechet_of_samples, symmetric_root
from imagen_video_jax.evaluation.metrics import METRICS, Options, VideoSet, measure


def features(seed, count, width=12, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width))
    return (rng.normal(size=(count, width)) * scale) @ mixing + shift


def test_frechet_equals_scipy_to_eight_digits():
    linalg = pytest.importorskip("scipy.linalg", reason="needs scipy")
    for seed, width in ((0, 12), (1, 64)):
        a, b = features(seed, 500, width), features(seed + 10, 400, width, scale=1.5, shift=0.3)
        (mean_a, mean_b), (S_a, S_b) = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
        expected = np.sum((mean_a - mean_b) ** 2) + np.trace(S_a + S_b - 2 * linalg.sqrtm(S_a @ S_b).real)
        assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-8)
        assert frechet_of_samples(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_gaussians_is_the_closed_form():
    # In a common eigenbasis: |m|^2 + sum (sqrt a - sqrt b)^2.
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    a, b, mean = np.linspace(0, 3, 20), np.linspace(2, 0.1, 20), np.linspace(-1, 1, 20)
    first = Moments(2, np.zeros(20), (basis * a) @ basis.T)  # of two, so that the scatter is the covariance
    second = Moments(2, mean, (basis * b) @ basis.T)
    expected = np.sum(mean**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_fewer_samples_than_dimensions_give_the_same_distance_from_samples_and_from_covariances():
    a, b = features(0, 9, 40), features(1, 7, 40, shift=0.2)
    by_covariance = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_of_samples(a, b) == pytest.approx(by_covariance, rel=1e-6)
    # One direction each, at a right angle: the roots share nothing.
    x, y = np.zeros((2, 3)), np.zeros((2, 3))
    x[:, 0] = y[:, 1] = [-1, 1]
    assert frechet_of_samples(x, y) == pytest.approx(4.0)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(4.0)


def test_a_set_is_at_distance_zero_from_itself_and_order_does_not_matter():
    a, b = features(0, 30, 50).astype(np.float32), features(1, 30, 50, scale=100.0).astype(np.float32)
    for one in (a, b):
        assert frechet_distance(Moments.of(one), Moments.of(one[::-1])) < 1e-6
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(
        frechet_distance(Moments.of(b), Moments.of(a))
    )


def test_moments_in_parts_are_those_of_the_whole_far_from_zero():
    whole = features(0, 100) + 1e6  # a sum of squares would lose every digit of the variance
    moments = Moments.none(12)
    for begin, end in ((0, 1), (1, 1), (1, 40), (40, 100)):
        moments.add(whole[begin:end])
    assert moments.count == 100
    np.testing.assert_allclose(moments.mean_D, whole.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance_DD, np.cov(whole.T), rtol=1e-6)


def test_moments_refuse_what_is_not_finite_and_too_few():
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(np.array([[1.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        Moments.of(np.ones((1, 3))).covariance_DD  # noqa: B018


def test_the_root_squared_is_the_matrix():
    S = np.cov(features(0, 6, 10).T)  # of rank 5
    root = symmetric_root(S)
    np.testing.assert_allclose(root @ root, S, atol=1e-12 * np.abs(S).max())
    assert np.linalg.matrix_rank(root, tol=1e-9) == 5


def test_kid_is_the_mean_over_pairs_and_unbiased():
    a, b = features(0, 5, 3), features(1, 4, 3)
    kernel = lambda x, y: (x @ y / 3 + 1) ** 3  # noqa: E731
    within_a = np.mean([kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([kernel(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert mmd.kid(a, b)() == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)
    # Counting a feature twice is the same as having it twice.
    doubled = mmd.kid(np.concatenate([a, a[:1]]), b)()
    assert mmd.kid(a, b)(np.array([2.0, 1, 1, 1, 1]), np.ones(4)) == pytest.approx(doubled, rel=1e-12)
    same = [mmd.kid(features(2 * s, 40, 3) / 5, features(2 * s + 1, 40, 3) / 5)() for s in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)


def test_cmmd_is_zero_for_equal_sets_and_ignores_the_length_of_features():
    a, b = features(0, 20), features(1, 25, shift=1.0)
    assert mmd.cmmd(a, a)() == pytest.approx(0, abs=1e-9)
    assert mmd.cmmd(a, b)() > 0
    assert mmd.cmmd(3 * a, b)() == pytest.approx(mmd.cmmd(a, b)(), rel=1e-9)
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    squares = lambda x, y: ((x[:, None] - y[None]) ** 2).sum(-1)  # noqa: E731
    k = lambda x, y: np.exp(-squares(x, y) / 200).mean()  # noqa: E731
    expected = 1000 * (k(unit_a, unit_a) + k(unit_b, unit_b) - 2 * k(unit_a, unit_b))
    assert mmd.cmmd(a, b)() == pytest.approx(expected, rel=1e-8)


def direct(name, first_ND, second_MD):
    """KID or CMMD with the kernel matrices of all features at once."""
    kernel = mmd.gaussian if name == "cmmd" else mmd.polynomial
    xx, yy, xy = (kernel(x, y) for x, y in ((first_ND, first_ND), (second_MD, second_MD), (first_ND, second_MD)))
    if name == "cmmd":
        return 1000 * (xx.mean() + yy.mean() - 2 * xy.mean())
    return sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)) - 2 * xy.mean()


def clips(seed, count, frames, width=4):
    """Videos of features whose frames are alike, as those of one video are."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, width)) + 0.1 * rng.normal(size=(frames, width)) + 1 for _ in range(count)]


def measured(name, real, generated):
    extractor = METRICS[name].features
    return measure(name, VideoSet({extractor: real}), VideoSet({extractor: generated}), Options())


@pytest.mark.parametrize("name", ["kid", "cmmd"])
@pytest.mark.parametrize("tile", [1, 3, 1024])
def test_tiles_of_any_size_give_the_distance_of_all_features_at_once_and_of_videos_drawn_again(monkeypatch, name, tile):
    monkeypatch.setattr(mmd, "_TILE", tile)
    lengths = ([1, 7, 2, 3], [5, 1, 4])  # within a tile, over its edge, over several
    first, second = ([clips(10 * s + n, 1, n)[0] for n in one] for s, one in enumerate(lengths))
    distance = getattr(mmd, name)(np.concatenate(first), np.concatenate(second), lengths)
    expected = direct(name, np.concatenate(first), np.concatenate(second))
    assert distance() == pytest.approx(expected, rel=1e-9)
    assert getattr(mmd, name)(np.concatenate(first), np.concatenate(second))() == pytest.approx(expected, rel=1e-9)
    drawn = direct(name, np.concatenate([first[i] for i in (0, 1, 1, 3)]), np.concatenate([second[2]] * 3))
    assert distance(np.array([1.0, 2, 0, 1]), np.array([0.0, 0, 3])) == pytest.approx(drawn, rel=1e-9)


@pytest.mark.parametrize("name", ["kid", "cmmd"])
def test_a_kernel_distance_is_exact_however_many_features_there_are(name):
    real, generated = clips(0, 260, 16), clips(1, 40, 16)
    found = measured(name, real, generated)
    assert found[name] == pytest.approx(direct(name, np.concatenate(real), np.concatenate(generated)), rel=1e-9)
    # 20 videos more hardly move it: they did where the sets were split.
    low, high = found[f"{name}_interval"]
    assert low < measured(name, real[:240], generated)[name] < high


@pytest.mark.parametrize("name", ["kid", "cmmd"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_generated_videos_beside_many_real_ones_give_an_interval_that_json_can_hold(name, count):
    found = json.loads(json.dumps(measured(name, clips(0, 260, 16), clips(1, count, 16)), allow_nan=False))
    low, high = found[f"{name}_interval"]
    assert low < found[name] < high


def test_groups_of_too_many_videos_give_the_distance_and_about_the_interval_of_the_videos(monkeypatch):
    real, generated = clips(0, 900, 1), clips(1, 100, 1)
    alone = measured("kvd", real, generated)
    monkeypatch.setattr(metrics, "_DRAWN", 80)
    grouped = measured("kvd", real, generated)
    assert grouped["kvd"] == pytest.approx(alone["kvd"], rel=1e-9)
    widths = [found["kvd_interval"][1] - found["kvd_interval"][0] for found in (alone, grouped)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)


def test_intervals_of_means_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap.mean_interval(rng.exponential(size=80), resamples=200)
        inside += low < 1.0 < high
    assert 0.87 < inside / 200 < 0.99


def test_the_interval_of_a_distance_is_around_it_and_shrinks_with_more_videos():
    widths = []
    for count in (50, 800):
        a, b = features(0, count, 5), features(1, count, 5, shift=2.0)
        estimate = frechet_of_samples(a, b)
        low, high = bootstrap.distance_interval(
            estimate, lambda i, j, a=a, b=b: frechet_of_samples(a[i], b[j]), (count, count), resamples=60
        )
        assert low < estimate < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
