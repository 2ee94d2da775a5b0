"""Goal: ids of any form, models that are saved, exported, warmed or run elsewhere. Method: beside
NumPy and the store; an exported model is loaded where hybridps cannot be imported."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import support.plain_keras  # noqa: F401 - sets the devices up before anything runs
import tensorflow as tf
from hybridps_tf import Embedding, InputStage, export, prefetch

import hybridps as hps

PARTS = [[1, 2, 2], [], [7], [2, 5]]
RAGGED = tf.ragged.constant(PARTS, dtype=tf.int64)


def pooled(spec, combiner, padding):
    bags = np.zeros((len(PARTS), spec.dim), np.float32)
    for number, part in enumerate(PARTS):
        left = [key for key in part if key != padding]
        if left:
            total = spec.initial_rows(left).sum(0)
            bags[number] = (
                total / {"sum": 1, "mean": len(left), "sqrtn": len(left) ** 0.5}[combiner]
            )
    return bags


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("form", ["ragged", "sparse", "graph"])
def test_bags(ps, spec, combiner, padding, form):
    layer = Embedding(ps, spec(), combiner, padding_idx=padding)
    ids = RAGGED.to_sparse() if form == "sparse" else RAGGED
    call = tf.function(layer) if form == "graph" else layer
    with tf.GradientTape() as tape:
        bags = call(ids, training=True)
        loss = tf.reduce_sum(bags * tf.constant([[1.0], [2.0], [3.0], [4.0]]))
    np.testing.assert_allclose(bags, pooled(spec(), combiner, padding), rtol=1e-6)
    assert layer.compute_output_shape((4, None)) == (4, 4)
    gradients = tape.gradient(loss, layer.trainable_variables)
    keras.optimizers.SGD(0.1).apply_gradients(
        zip(gradients, layer.trainable_variables, strict=True)
    )
    keys, rows = ps.pushes()[0]["item"]
    flat = [(key, bag) for bag, part in enumerate(PARTS) for key in part if key != padding]
    assert keys.tolist() == [key for key, _ in flat]
    sizes = [len([key for key in part if key != padding]) for part in PARTS]
    divisor = {"sum": np.ones(4), "mean": np.array(sizes), "sqrtn": np.sqrt(sizes)}[combiner]
    wanted = [(bag + 1) / divisor[bag] for _, bag in flat]
    np.testing.assert_allclose(rows[:, 0], wanted, rtol=1e-6)


def test_rows_of_ragged_ids_are_ragged(ps, spec):
    layer = Embedding(ps, spec())
    rows = layer(RAGGED, training=True)
    assert rows.shape.as_list() == [4, None, 4]
    np.testing.assert_array_equal(rows.flat_values, spec().initial_rows([1, 2, 2, 7, 2, 5]))
    nested = tf.ragged.constant([[[1], [2, 3]], [[]]], dtype=tf.int64)
    deep = Embedding(ps, spec(), "sum")(nested, training=True)
    np.testing.assert_allclose(deep[0][1], spec().initial_rows([2, 3]).sum(0), rtol=1e-6)


def test_keys_are_those_of_every_client(ps, spec):
    layer = Embedding(ps, spec())
    texts = tf.constant([["shoes", "gr\u00f6\u00dfe"]])
    rows = layer(texts, training=True)
    np.testing.assert_array_equal(rows[0], ps.table("item").lookup(["shoes", "gr\u00f6\u00dfe"]))
    assert rows.numpy().any()
    big = tf.constant([2**64 - 1], tf.uint64)
    np.testing.assert_array_equal(layer(big, training=True), layer(tf.constant([-1], tf.int8)))
    assert tuple(layer(tf.zeros((2, 0, 3), tf.int32)).shape) == (2, 0, 3, 4)
    assert tuple(layer(tf.constant(5)).shape) == (4,)


def test_mistakes_are_named(ps, spec):
    layer = Embedding(ps, spec())
    for message, call in [
        ("float32", lambda: layer(tf.ones(3))),
        ("float32.*int64", lambda: layer(keras.Input((3,)))),
        ("bool", lambda: layer(tf.constant([True]))),
        ("sparse; give a combiner", lambda: layer(RAGGED.to_sparse())),
        ("no bag", lambda: Embedding(ps, spec(), "sum")(tf.constant(5))),
        ("combiner is 'max'", lambda: Embedding(ps, spec(), "max")),
        ("padding_idx", lambda: Embedding(ps, spec(), padding_idx=2**64)),
    ]:
        with pytest.raises(hps.BadInputError, match=f"(?s)table 'item'.*{message}"):
            call()
    assert ps.calls == []


def model_of(ps, spec):
    ids = keras.Input((3,), dtype="int64", name="ids")
    price = keras.Input((2,), name="price")
    parts = [
        keras.layers.Flatten()(Embedding(ps, spec("a"), padding_idx=2)(ids)),
        Embedding(ps, spec("b"), "mean")(ids),
        price,
    ]
    score = keras.layers.Dense(1)(keras.layers.Concatenate()(parts))
    return keras.Model({"ids": ids, "price": price}, score)


def data(samples=16):
    random = np.random.default_rng(5)
    ids = random.integers(9, size=(samples, 3))
    return {"ids": ids, "price": random.random((samples, 2), np.float32)}, random.random(samples)


def trained(ps, spec):
    model = model_of(ps, spec)
    model.compile("sgd", "mse")
    model.fit(*data(), batch_size=8, verbose=0)
    return model


LOADED = """
import sys
import numpy as np
import tensorflow as tf
sys.modules["hybridps"] = sys.modules["hybridps_tf"] = None
home, = sys.argv[1:]
io = np.load(home + "/io.npz")
model = tf.saved_model.load(home + "/model")
inputs = {"ids": tf.constant(io["ids"]), "price": tf.constant(io["price"])}
np.testing.assert_allclose(model.serve(inputs), io["wanted"], rtol=1e-6)
(served,) = model.signatures["serving_default"](**inputs).values()
np.testing.assert_allclose(served, io["wanted"], rtol=1e-6)
"""


def test_an_exported_model_needs_no_hybridps(ps, spec, tmp_path):
    model = trained(ps, spec)
    inputs, _ = data()
    # Keys that no row was made for, on both sides of all others, and padding.
    inputs["ids"] = np.concatenate([inputs["ids"][:8] - 3, inputs["ids"][8:] + 3])
    export(model, str(tmp_path / "model"))
    wanted = model.predict(inputs, verbose=0)
    np.savez(tmp_path / "io.npz", wanted=wanted, **inputs)
    subprocess.run([sys.executable, "-c", LOADED, str(tmp_path)], check=True, capture_output=True)
    assert b"PyFunc" not in (tmp_path / "model" / "saved_model.pb").read_bytes()
    # The layers are live again.
    ps.table("a").assign(range(9), np.ones((9, 4), np.float32))
    assert np.abs(model.predict(inputs, verbose=0) - wanted).max() > 1e-3
    export(model, str(tmp_path / "few"), keys={"a": [1], "b": []})
    few = tf.saved_model.load(str(tmp_path / "few"))
    assert few.hybridps_rows[0].shape == (1,)
    with pytest.raises(hps.BadInputError, match="'c', of which the model has no layer"):
        export(model, str(tmp_path / "none"), keys={"c": [1]})


def test_saved_models_come_back_to_their_tables(ps, spec, tmp_path):
    model = trained(ps, spec)
    inputs, _ = data()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )
    model.save_weights(tmp_path / "only.weights.h5")
    pushes = len(ps.pushes())
    again.load_weights(tmp_path / "only.weights.h5")
    again.set_weights(again.get_weights())
    assert len(ps.pushes()) == pushes
    layer = next(layer for layer in again.layers if isinstance(layer, Embedding))
    layer.load_rows([1, 2], tf.ones((2, 4)))
    assert (ps.table("a").lookup([1]) == 1).all()
    assert not ps.table("a").lookup([2], return_found=True)[1]


def test_look_ahead_warms_and_changes_nothing(ps, spec):
    inputs, target = data(32)
    elements = tf.data.Dataset.from_tensor_slices((inputs, target)).batch(8)
    losses = []
    for table in ("x", "y"):
        model = model_of(ps, lambda name, table=table: spec(name + table))
        keras.utils.set_random_seed(1)
        model.layers[-1].set_weights([np.ones((18, 1)), np.zeros(1)])
        model.compile("sgd", "mse")
        ahead = prefetch(elements, model, depth=2) if table == "y" else elements
        losses.append(model.fit(ahead, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_array_equal(*losses)
    warmed = [tables for verb, tables in ps.calls if verb == "prefetch"]
    assert len(warmed) == 8
    assert all(set(tables) == {"ay", "by"} for tables in warmed)
    by_hand = prefetch(elements, model, ids=lambda features, _: {"ay": features["ids"]})
    assert len(list(by_hand)) == 4
    assert set(ps.calls[-1][1]) == {"ay"}
    with pytest.raises(Exception, match="no ids found"):
        prefetch(elements.map(lambda features, _: features["price"]), model)


def test_a_store_that_refuses_the_hint_stops_no_loop(ps, spec):
    elements = tf.data.Dataset.from_tensor_slices(data()[0]["ids"]).batch(4)
    layer = Embedding(ps, spec())
    model = keras.Sequential([keras.Input((3,), dtype="int64"), layer])
    ps.store.close()
    with pytest.warns(UserWarning, match="could not warm"):
        assert len(list(prefetch(elements, model))) == 4


def test_input_stage_trains_replicas(ps, spec):
    """Two replicas, each with half a batch; their gradients come back and go in one call."""
    stage = InputStage(ps, {"item": spec("a"), "seen": spec("b")}, padding_idx=2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    ids = {"item": tf.constant([[1, 2], [3, 4]], tf.int64), "seen": RAGGED}
    rows = stage.read(ids)
    assert not rows["item"][0, 1].numpy().any()
    halves = strategy.experimental_distribute_values_from_function(
        lambda context: rows["item"][context.replica_id_in_sync_group]
    )

    @tf.function
    def step(part):
        with tf.GradientTape() as tape:
            tape.watch(part)
            loss = tf.reduce_sum(tf.square(part))
        return tape.gradient(loss, part)

    gradients = tf.stack(strategy.experimental_local_results(strategy.run(step, (halves,))))
    stage.push(ids, {"item": gradients, "seen": rows["seen"] * 0 + 1})
    (push,) = ps.pushes()
    assert push["a"][0].tolist() == [1, 3, 4]
    np.testing.assert_allclose(push["a"][1], 2 * spec("a").initial_rows([1, 3, 4]), rtol=1e-6)
    assert push["b"][0].tolist() == [1, 7, 5]
    assert stage.read({"item": ids["item"] + 50}, training=False)["item"].numpy().any() == 0
    with pytest.raises(hps.BadInputError, match="'item' have shape"):
        stage.push(ids, {"item": gradients[:1]})
    with pytest.raises(hps.BadInputError, match="'noise' is not in this stage"):
        stage.read({"noise": ids["item"]})
