"""Goal: `fit` trains to plain Keras's numbers, with one push a step, and what is no training pushes
nothing. Method: the same model, data, order and dense weights beside plain Keras, counted calls."""

import keras
import numpy as np
import pytest
import support.plain_keras  # noqa: F401 - sets the devices up before anything runs
import tensorflow as tf
from hybridps_tf import Embedding

import hybridps as hps

KEYS, SAMPLES, COLUMNS, BATCH = 12, 32, 3, 8
RANDOM = np.random.default_rng(3)
IDS = RANDOM.integers(KEYS, size=(SAMPLES, COLUMNS))
TARGET = RANDOM.random((SAMPLES, 1), np.float32)


def model_of(layers):
    ids = keras.Input((COLUMNS,), dtype="int64")
    parts = [layer(ids) for layer in layers]
    flat = [keras.layers.Flatten()(part) if len(part.shape) > 2 else part for part in parts]
    hidden = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    rule = keras.initializers.RandomNormal(seed=5)
    return keras.Model(ids, keras.layers.Dense(1, kernel_initializer=rule)(hidden))


def ours(ps, spec, padding=None):
    """Three layers, two of them on one table."""
    return model_of(
        [
            Embedding(ps, spec("a"), padding_idx=padding),
            Embedding(ps, spec("b"), combiner="mean", padding_idx=padding),
            Embedding(ps, spec("c"), combiner="sqrtn", padding_idx=padding),
        ]
    )


def theirs(plain, spec, padding=None):
    return model_of(
        [
            plain(spec("a"), range(KEYS), None, padding),
            plain(spec("b"), range(KEYS), "mean", padding),
            plain(spec("c"), range(KEYS), "sqrtn", padding),
        ]
    )


def same(ps, model, reference):
    np.testing.assert_allclose(
        model.predict(IDS, verbose=0), reference.predict(IDS, verbose=0), rtol=1e-5
    )
    layers = [layer for layer in reference.layers if hasattr(layer, "rows")]
    for name, layer in zip("abc", layers, strict=True):
        keys = np.concatenate(list(ps.table(name).keys())).astype(np.int64)
        wanted = layer.rows.numpy()[keys]
        np.testing.assert_allclose(ps.table(name).lookup(keys), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "padding"),
    [({}, None), ({"run_eagerly": True}, 2), ({"steps_per_execution": 4}, 2)],
)
def test_fit_is_plain_keras_with_one_push_a_step(ps, spec, plain, options, padding):
    model, reference = ours(ps, spec, padding), theirs(plain, spec, padding)
    for each in (model, reference):
        each.compile(keras.optimizers.SGD(0.1), "mse", **options)
        each.fit(IDS, TARGET, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    assert model.jit_compile is False
    assert len(ps.pushes()) == 2 * SAMPLES // BATCH
    assert all(set(push) == {"a", "b", "c"} for push in ps.pushes())
    same(ps, model, reference)
    if padding is not None:
        for name in "abc":
            assert not ps.table(name).lookup([padding], return_found=True)[1]


def test_what_is_to_be_compiled_for_xla_is_not(ps, spec):
    """As "auto" would have it where there is an accelerator."""
    model = model_of([Embedding(ps, spec())])
    with pytest.warns(UserWarning, match="jit_compile=True"):
        model.compile("sgd", "mse", jit_compile=True)
    model.fit(IDS, TARGET, batch_size=SAMPLES, verbose=0)
    assert len(ps.pushes()) == 1


def test_layers_of_one_table_share_the_push(ps, spec):
    model = model_of([Embedding(ps, spec()), Embedding(ps, spec(), combiner="sum")])
    model.compile("adam", "mse", steps_per_execution=2)
    model.fit(IDS, TARGET, batch_size=BATCH, verbose=0)
    assert [sorted(push) for push in ps.pushes()] == [["item"]] * (SAMPLES // BATCH)
    assert all(push["item"][0].size == 2 * BATCH * COLUMNS for push in ps.pushes())


def test_predict_and_evaluate_insert_and_push_nothing(ps, spec):
    model = ours(ps, spec)
    model.compile("sgd", "mse")
    model.evaluate(IDS, TARGET, verbose=0)
    model.predict(IDS, verbose=0)
    model(IDS)
    assert set(ps.verbs()) == {"lookup"}
    assert not any(len(ps.table(name)) for name in "abc")


@pytest.mark.parametrize("options", [{"clipnorm": 1e-9}, {"weight_decay": 0.5}])
def test_what_the_dense_optimizer_does_besides_leaves_rows_alone(ps, spec, options):
    """Clipped to nothing, or decayed, rows would show it."""
    model = model_of([Embedding(ps, spec())])
    model.compile(keras.optimizers.Adam(**options), "mse")
    model.fit(IDS, TARGET, batch_size=SAMPLES, verbose=0)
    ((keys, gradients),) = ps.pushes()[0].values()
    assert keys.size == IDS.size
    assert np.abs(gradients).max() > 1e-4
    assert not model.layers[1].anchor.numpy().any()


def test_gradient_accumulation_of_keras_is_one_step_of_the_joint_batch(ps, spec, plain):
    model, reference = ours(ps, spec), theirs(plain, spec)
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), "mse")
    reference.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(IDS, TARGET, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    reference.fit(IDS, TARGET, batch_size=4 * BATCH, epochs=2, shuffle=False, verbose=0)
    assert len(ps.pushes()) == 2
    same(ps, model, reference)


def loss_of(model, ids=IDS, target=TARGET):
    return tf.reduce_mean(tf.square(model(ids, training=True) - target))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_that_nobody_applies_train_nothing(ps, spec, plain, compiled):
    model, reference = ours(ps, spec), theirs(plain, spec)
    optimizers = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)

    def step(model, optimizer):
        with tf.GradientTape(persistent=True) as tape:
            loss = loss_of(model)
            penalty = 1000 * loss_of(model, IDS[::-1])
        dense = model.layers[-1].trainable_variables
        tape.gradient(penalty, model.trainable_variables)
        tape.gradient(penalty, dense)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for each, optimizer in zip((model, reference), optimizers, strict=True):
        optimizer.build(each.trainable_variables)
        run = tf.function(step) if compiled else step
        for _ in range(3):
            run(each, optimizer)
    assert len(ps.pushes()) == 3
    same(ps, model, reference)


def test_gradients_of_two_models_of_one_store_do_not_mix(ps, spec):
    one, two = model_of([Embedding(ps, spec("a"))]), model_of([Embedding(ps, spec("b"))])
    optimizers = [keras.optimizers.SGD(0.1) for _ in "ab"]
    for _ in range(3):
        gradients = []
        for model in (one, two):
            with tf.GradientTape() as tape:
                loss = loss_of(model)
            gradients.append(tape.gradient(loss, model.trainable_variables))
        for model, grads, rule in zip((two, one), gradients[::-1], optimizers, strict=True):
            rule.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    assert [set(push) for push in ps.pushes()] == [{"b"}, {"a"}] * 3


def test_accumulation_by_hand_keeps_its_factors(ps, spec):
    """The mean of two micro-batches, as users of custom loops write it."""
    model = model_of([Embedding(ps, spec())])
    variables = model.trainable_variables
    gradients = []
    for part in (slice(0, 8), slice(8, 16)):
        with tf.GradientTape() as tape:
            loss = loss_of(model, IDS[part], TARGET[part])
        gradients.append(tape.gradient(loss, variables))
    mean = [
        (tf.convert_to_tensor(a) + tf.convert_to_tensor(b)) / 2
        for a, b in zip(*gradients, strict=True)
    ]
    with tf.GradientTape() as tape:
        joint = loss_of(model, IDS[:16], TARGET[:16])
    wanted = tape.gradient(joint, variables)
    rule = keras.optimizers.SGD(0.0)
    rule.apply_gradients(zip(mean, variables, strict=True))
    rule.apply_gradients(zip(wanted, variables, strict=True))
    halves, whole = (push["item"] for push in ps.pushes())
    np.testing.assert_array_equal(halves[0], whole[0])
    np.testing.assert_allclose(halves[1], whole[1], rtol=1e-5, atol=1e-8)


def test_frozen_layers_read_and_learn_nothing(ps, spec, recwarn):
    model = ours(ps, spec)
    frozen = [layer for layer in model.layers if isinstance(layer, Embedding)]
    frozen[0].trainable = False
    model.compile("sgd", "mse")
    model.fit(IDS, TARGET, batch_size=SAMPLES, verbose=0)
    assert set(ps.pushes()[0]) == {"b", "c"}
    for layer in frozen:
        layer.trainable = False
    model.compile("sgd", "mse")
    model.fit(IDS, TARGET, batch_size=SAMPLES, verbose=0)
    assert len(ps.pushes()) == 1
    assert not [w for w in recwarn if "Gradients do not exist" in str(w.message)]


def test_a_push_that_is_refused_raises_from_fit(ps, spec):
    model = model_of([Embedding(ps, spec())])
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(hps.BadInputError, match=r"item.*nan"):
        model.fit(IDS, np.full_like(TARGET, np.nan), verbose=0)
    model.compile("sgd", "mse")
    with pytest.raises(tf.errors.OpError, match=r"(?s)item.*nan"):
        model.fit(IDS, np.full_like(TARGET, np.nan), verbose=0)


def test_a_rule_that_makes_something_of_the_receipt_is_refused(ps, spec):
    model = model_of([Embedding(ps, spec())])
    with tf.GradientTape() as tape:
        loss = loss_of(model)
    anchor = model.layers[1].anchor
    receipt = tape.gradient(loss, [anchor])[0]
    with pytest.raises(hps.HybridPSError, match="Keras 3"):
        anchor.assign_sub(0.1 * receipt)
    assert ps.pushes() == []


def test_strategies_with_replicas_and_scaled_losses_are_refused(ps, spec):
    layer = Embedding(ps, spec())
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(hps.BadInputError, match=r"'item'.*mixed_bfloat16"):
            layer(IDS, training=True)
        assert layer(IDS).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with (
        strategy.scope(),
        pytest.raises(hps.BadInputError, match=r"2; use hybridps_tf\.InputStage"),
    ):
        layer(IDS, training=True)
    assert "lookup_or_insert" not in ps.verbs()
