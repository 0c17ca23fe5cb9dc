"""What a stage sees, shown by gradients, and what its noise depends on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video_jax.diffusion.samplers import SamplerConfig
from imagen_video_jax.functional import parameter_count
from imagen_video_jax.stages.stage import Conditions, Stage
from imagen_video_jax.stages.stage_config import StageConfig
from tests.stages.stage_kinds import NAMES, random_batch, smallest, tiny


def shaken(stage: Stage, seed=0):
    """Random parameters with no layer at zero, so that gradients can flow everywhere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), stage.network.abstract)


def conditions_of(stage: Stage, batch) -> Conditions:
    x = jnp.asarray(batch.video_BTHWC, jnp.float32) / 127.5 - 1
    return stage._training_conditions(batch, x, lambda name: jax.random.split(jax.random.key(7), len(batch)))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_changes_nothing_but_itself(name):
    config = tiny(name, text_drop=0.0)
    stage = Stage(dataclasses.replace(config, crop=None))
    batch = random_batch(config, size=3, images=True)
    params = shaken(stage)
    conditions = conditions_of(stage, batch)
    z = jax.random.normal(jax.random.key(2), batch.video_BTHWC.shape)

    def second(z):
        return jnp.sum(stage.predict(params, z, jnp.zeros(3), conditions)[1] ** 2)

    gradient = jax.jit(jax.grad(second))(z)
    assert jnp.abs(gradient[1]).max() > 0
    assert jnp.abs(gradient[0]).max() == jnp.abs(gradient[2]).max() == 0


@pytest.mark.parametrize("name", [NAMES[0], NAMES[1], NAMES[6]])
def test_a_frame_of_a_video_sees_its_neighbours(name):
    config = dataclasses.replace(tiny(name, text_drop=0.0), crop=None)
    stage = Stage(config)
    batch = random_batch(config, size=1)
    params = shaken(stage)
    conditions = conditions_of(stage, batch)
    z = jax.random.normal(jax.random.key(2), batch.video_BTHWC.shape)
    middle = config.frames // 2
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(stage.predict(params, z, jnp.zeros(1), conditions)[:, middle] ** 2)))(
        z
    )
    reach = jnp.abs(gradient).max(axis=(0, 2, 3, 4))
    assert (reach[middle - 1 : middle + 2] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_text_low_resolution_and_noise_levels_matter(name):
    config = dataclasses.replace(tiny(name, text_drop=0.0), crop=None)
    stage = Stage(config)
    batch = random_batch(config, size=1)
    params = shaken(stage)
    given = conditions_of(stage, batch)
    z = jax.random.normal(jax.random.key(2), batch.video_BTHWC.shape)
    predict = jax.jit(stage.predict)
    reference = predict(params, z, jnp.zeros(1), given)
    changes = {
        # Not a shift: text is layer-normed.
        "text": dataclasses.replace(given, text_BLD=-given.text_BLD),
        "fps": dataclasses.replace(given, fps_B=given.fps_B * 2),
    }
    if config.kind != "base":
        changes["low"] = dataclasses.replace(given, low_BTHWC=given.low_BTHWC + 0.5)
        changes["low noise"] = dataclasses.replace(given, low_logsnr_B=given.low_logsnr_B + 3)
    for what, changed in changes.items():
        assert jnp.abs(predict(params, z, jnp.zeros(1), changed) - reference).max() > 1e-4, what
    assert jnp.abs(predict(params, z, jnp.ones(1) * 3, given) - reference).max() > 1e-4
    padding = dataclasses.replace(given, text_BLD=jnp.where(given.text_mask_BL[..., None], given.text_BLD, 99.0))
    np.testing.assert_allclose(predict(params, z, jnp.zeros(1), padding), reference, atol=1e-5)


def test_the_video_stays_when_the_text_is_dropped():
    stage = Stage(tiny(NAMES[2], text_drop=1.0))
    batch = random_batch(stage.config, size=2)
    given = conditions_of(stage, batch)
    assert not given.text_BLD.any()
    assert given.text_mask_BL[:, 0].all()
    assert not given.text_mask_BL[:, 1:].any()
    assert jnp.abs(given.low_BTHWC).max() > 0
    null = given.unconditional()
    np.testing.assert_array_equal(null.text_BLD, given.text_BLD)
    np.testing.assert_array_equal(null.text_mask_BL, given.text_mask_BL)


def test_blank_frames_are_marked_and_repeated_frames_repeat():
    for fill in ("blank", "repeat"):
        stage = Stage(tiny(NAMES[1], fill=fill))
        given = conditions_of(stage, random_batch(stage.config, size=1))
        frames = np.asarray(given.low_BTHWC[0])
        if fill == "blank":
            assert given.low_mask_BT[0].tolist() == [1, 0] * (stage.config.frames // 2)
            assert not frames[1::2].any()
        else:
            np.testing.assert_array_equal(frames[0::2], frames[1::2])


@pytest.mark.parametrize("name", [NAMES[1], NAMES[2]])
def test_a_new_residual_stage_returns_its_input_denoised(name):
    stage = Stage(tiny(name))
    batch = random_batch(stage.config, size=2)
    params = stage.init(jax.random.key(0))
    given = conditions_of(stage, batch)
    given = dataclasses.replace(given, low_logsnr_B=jnp.array([20.0, -20.0]))
    z = jax.random.normal(jax.random.key(2), batch.video_BTHWC.shape)
    x = jax.jit(stage.predict)(params, z, jnp.zeros(2), given)
    # Nothing to take away from a clean input; nothing to keep of one that is all noise.
    np.testing.assert_allclose(x[0], given.low_BTHWC[0], atol=1e-5)
    np.testing.assert_allclose(x[1], 0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window": 9}, "window must be between 1 and frames 8"),
        ({"augmentation_max": 1.5}, "augmentation_max must be in"),
        ({"augmentation_max": -1.0}, "augmentation_max must be in"),
        ({"sampler": SamplerConfig(augmentation_snr=5.0)}, "snr 5 is more noise than temp.* take at least 39.86"),
        ({"augmentation_max": 0.0}, "augmentation_snr 20000 is more noise than .* take at least inf"),
        ({"window": 3}, "train_frames 3 must be divisible by factor 2"),
        ({"window": 2}, "train_frames 2 must be at least twice factor 2"),
        ({"prediction": "v"}, "residual needs prediction 'x'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(tiny(NAMES[1]), **changes)


def test_noise_does_not_depend_on_how_a_batch_is_split():
    stage = Stage(tiny(NAMES[0]))
    params = shaken(stage)
    batch = random_batch(stage.config, size=4)
    sample = jax.jit(
        lambda text, mask, index: stage.sample(params, text_BLD=text, text_mask_BL=mask, index_B=index, seed=3)
    )
    whole = sample(batch.text_BLD, batch.text_mask_BL, jnp.arange(4))
    halves = [sample(batch.text_BLD[i : i + 2], batch.text_mask_BL[i : i + 2], jnp.arange(i, i + 2)) for i in (0, 2)]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=2e-4)
    assert np.abs(whole[0] - whole[1]).max() > 0.1


def test_guidance_leads_away_from_the_negative_text():
    stage = Stage(tiny(NAMES[0]))
    params = shaken(stage)
    batch = random_batch(stage.config, size=2)
    text = (batch.text_BLD, batch.text_mask_BL)
    other = (-batch.text_BLD, batch.text_mask_BL)

    @functools.partial(jax.jit, static_argnames="weight")
    def sample(negative, weight):
        sampler = dataclasses.replace(stage.config.sampler, steps=2, guidance=weight, clip="none")
        return stage.sample(
            params,
            text_BLD=text[0],
            text_mask_BL=text[1],
            index_B=jnp.arange(2),
            seed=0,
            negative=negative,
            sampler=sampler,
        )

    # Away from the prompt itself is nowhere.
    np.testing.assert_allclose(sample(text, 3.0), sample(None, 0.0), atol=1e-3)
    assert jnp.abs(sample(other, 3.0) - sample(None, 3.0)).max() > 0.01


def test_projected_guidance_limited_to_all_times_is_plain_guidance_and_limited_to_none_is_none():
    stage = Stage(smallest(NAMES[0]))
    params, batch = shaken(stage), random_batch(stage.config, size=2)

    def sample(**changes):
        sampler = dataclasses.replace(stage.config.sampler, steps=3, clip="none", **changes)
        given = dict(text_BLD=batch.text_BLD, text_mask_BL=batch.text_mask_BL, index_B=jnp.arange(2), seed=0)
        return jax.jit(lambda params: stage.sample(params, **given, sampler=sampler))(params)

    plain, off = sample(guidance=3.0), sample(guidance=0.0)
    projected = sample(guidance=3.0, rule="apg", apg_parallel=1.0, apg_momentum=0.0)
    np.testing.assert_allclose(projected, plain, atol=1e-3)
    assert jnp.abs(plain - off).max() > 0.01
    # Times of the calls are 1, 2/3 and 1/3: the interval lets the middle one be guided, or none.
    middle, none = (sample(guidance=30.0, interval=interval) for interval in ((0.5, 0.9), (0.7, 0.9)))
    np.testing.assert_allclose(none, off, atol=1e-4)
    assert jnp.abs(middle - off).max() > 1e-3
    assert jnp.abs(middle - sample(guidance=30.0)).max() > 1e-3


def test_the_loss_of_a_part_is_the_part_of_the_loss():
    stage = Stage(tiny(NAMES[6]))
    params = shaken(stage)
    batch = random_batch(stage.config, size=4)
    key = jax.random.key(5)
    whole, _ = jax.jit(stage.loss)(params, batch, key)
    half = jax.tree.map(lambda a: a[2:], batch)
    part, _ = jax.jit(lambda p, b: stage.loss(p, b, key, jnp.arange(2, 4), 4))(params, half)
    np.testing.assert_allclose(whole[2:], part, rtol=1e-4)


def test_a_fully_convolutional_stage_takes_any_size():
    stage = Stage(tiny(NAMES[6]))
    params = shaken(stage)
    batch = random_batch(stage.config, size=1)
    low = jnp.zeros((1, 3, 8, 12, 3))
    video = jax.jit(
        lambda low: stage.sample(
            params,
            text_BLD=batch.text_BLD,
            text_mask_BL=batch.text_mask_BL,
            index_B=jnp.arange(1),
            seed=0,
            low_BTHWC=low,
        )
    )(low)
    assert video.shape == (1, 3, 16, 24, 3)


@pytest.mark.parametrize(("name", "billions"), zip(NAMES, (5.6, 1.7, 1.4, 1.2, 0.78, 0.63, 0.34)), ids=NAMES)
def test_paper_scale_has_the_published_number_of_parameters(name, billions):
    from experiments import defaults
    from imagen_video_jax.configs import to_dataclass

    config = to_dataclass(StageConfig, defaults.training(name, "paper").stage.to_dict(), "stage")
    assert parameter_count(Stage(config).network.abstract) / 1e9 == pytest.approx(billions, rel=0.05)
