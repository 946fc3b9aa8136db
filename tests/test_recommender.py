"""Recommenders against sequential loops, per-user solves and brute force in NumPy."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsvd.models import normal_equations, recommender
from tests.helpers import FLOAT32, FLOAT64


def generated(users, items, k, count, noise, seed=0, dtype=np.float32, scale=1.0):
    """Ratings from known factors and biases, and the truth at those places."""
    rng = np.random.default_rng(seed)
    p, q = (scale * rng.standard_normal((n, k)) for n in (users, items))
    a, b = 0.5 * rng.standard_normal(users), 0.5 * rng.standard_normal(items)
    u, i = np.divmod(rng.permutation(users * items)[:count], items)
    truth = 3.5 + a[u] + b[i] + np.sum(p[u] * q[i], axis=1)
    values = (truth + noise * rng.standard_normal(count)).astype(dtype)
    return recommender.ratings(u, i, values, (users, items)), truth


def test_rmse_within_one_percent_of_the_bayes_error():
    data, truth = generated(700, 600, 1, 330_000, noise=0.8)
    assert abs(recommender.rmse(data.values, truth) / 0.8 - 1) < 0.01
    train, test = recommender.split(data, 0.1)
    # The error of one who knows the truth, on the same ratings.
    place = lambda x: x.users.astype(np.int64) * 600 + x.items  # noqa: E731
    where = np.isin(place(data), place(test))
    bayes = recommender.rmse(truth[where], data.values[where])
    state = recommender.als(train, 1, regularization=0.64, sweeps=8)
    error = recommender.rmse(recommender.predict(state, test.users, test.items), test.values)
    assert bayes < error < 1.01 * bayes
    rates = lambda epoch: 0.02 * 0.85**epoch  # noqa: E731
    state = recommender.sgd(train, 1, epochs=30, learning_rate=rates, regularization=0.002)
    error = recommender.rmse(recommender.predict(state, test.users, test.items), test.values)
    assert bayes < error < 1.01 * bayes


def sequential(train, k, epochs, rate, reg, seed):
    """Funk's loop, one rating after the other, in double precision."""
    rng = np.random.default_rng(seed)
    p, q = (0.1 * rng.standard_normal((n, k)) for n in train.shape)
    a, b = np.zeros(train.shape[0]), np.zeros(train.shape[1])
    mean = train.values.mean(dtype=np.float64)
    for _ in range(epochs):
        for r in rng.permutation(train.values.size):
            u, i = train.users[r], train.items[r]
            pu = p[u].copy()
            e = train.values[r] - mean - a[u] - b[i] - pu @ q[i]
            a[u] += rate * (e - reg * a[u])
            b[i] += rate * (e - reg * b[i])
            p[u] += rate * (e * q[i] - reg * pu)
            q[i] += rate * (e * pu - reg * q[i])
    return recommender.Factors(p, q, a, b, mean)


def test_mini_batches_are_as_good_as_sequential_steps():
    data, _ = generated(120, 90, 3, 6000, noise=0.3, scale=0.5, dtype=np.float64)
    train, test = recommender.split(data)
    errors = []
    for state in (
        sequential(train, 3, 30, 0.02, 0.02, 1),
        recommender.sgd(
            train, 3, epochs=30, learning_rate=0.02, regularization=0.02, batch_size=64
        ),
    ):
        errors.append(
            recommender.rmse(recommender.predict(state, test.users, test.items), test.values)
        )
    baseline = recommender.rmse(train.values.mean(), test.values)
    assert errors[0] < 0.6 * baseline  # both have learned something
    assert abs(errors[1] - errors[0]) < 0.005 * baseline


def test_a_batch_of_one_is_the_sequential_step():
    """Exactly Funk's update: the same order gives the same numbers."""
    data = recommender.ratings([0, 1, 1], [0, 0, 1], np.array([1.0, 4.0, 2.0]))
    first = recommender.sgd(data, 2, epochs=1, learning_rate=1e-12)
    one = recommender.ratings([1], [0], np.array([4.0]), (2, 2))
    state, history = recommender.sgd(
        one, 2, epochs=1, learning_rate=0.1, regularization=0.3, start=first, return_history=True
    )
    p, q = np.asarray(first.users[1]), np.asarray(first.items[0])
    e = 4.0 - first.mean - first.user_bias[1] - first.item_bias[0] - p @ q
    np.testing.assert_allclose(state.users[1], p + 0.1 * (e * q - 0.3 * p), rtol=1e-12)
    np.testing.assert_allclose(state.items[0], q + 0.1 * (e * p - 0.3 * q), rtol=1e-12)
    np.testing.assert_allclose(state.user_bias[1], 0.1 * e, rtol=1e-9)
    np.testing.assert_allclose(state.users[0], first.users[0], rtol=1e-15)
    np.testing.assert_allclose(history, [abs(e)], rtol=1e-12)


@pytest.mark.x32
def test_sgd_is_deterministic_and_continues():
    data, _ = generated(40, 30, 2, 700, noise=0.1)
    settings = dict(epochs=4, batch_size=50, learning_rate=0.02)
    state, history = recommender.sgd(data, 2, return_history=True, **settings)
    for x, y in zip(state, recommender.sgd(data, 2, **settings), strict=True):
        np.testing.assert_array_equal(x, y)
    assert history.shape == (4,)
    assert np.all(np.diff(history) < 0)
    other = recommender.sgd(data, 2, seed=1, **settings)
    assert np.abs(other.users - state.users).max() > 0.01
    more, later = recommender.sgd(data, 2, start=state, return_history=True, **settings)
    assert later[-1] < history[-1]
    assert more.mean == state.mean


def test_progress_shows_a_bar_and_changes_nothing(capsys, monkeypatch):
    data, _ = generated(40, 30, 2, 700, noise=0.1)
    settings = dict(epochs=4, batch_size=50, learning_rate=0.02)
    state = recommender.sgd(data, 2, **settings)
    shown = recommender.sgd(data, 2, progress=True, **settings)
    assert "4/4" in capsys.readouterr().err
    np.testing.assert_allclose(shown.users, state.users, atol=1e-6)
    quiet = recommender.als(data, 2, sweeps=3)
    shown = recommender.als(data, 2, sweeps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    np.testing.assert_allclose(shown.users, quiet.users, atol=1e-5)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'pip install "jaxsvd\[io\]"'):
        recommender.sgd(data, 2, progress=True)


def small(dtype=np.float64, seed=0):
    """User 3 and item 4 have no ratings; user 0 has more than a segment holds."""
    rng = np.random.default_rng(seed)
    rated = rng.random((12, 30)) < 0.4
    rated[0], rated[3], rated[:, 4] = True, False, False
    u, i = np.nonzero(rated)
    values = rng.uniform(1, 5, u.size).astype(dtype)
    order = rng.permutation(u.size)
    return recommender.ratings(u[order], i[order], values[order], (12, 30))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("by_count", [False, True])
def test_als_solves_each_side_exactly(dtype, by_count, monkeypatch):
    monkeypatch.setattr(normal_equations, "CHUNK", 64)  # several chunks
    monkeypatch.setattr(normal_equations, "ROWS", 5)
    data, k, reg = small(dtype), 2, 0.3
    tol = 2e-4 if dtype == np.float32 else 1e-10
    state = recommender.als(data, k, sweeps=3, regularization=reg, by_count=by_count)
    assert state.users.dtype == dtype
    f = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
    np.testing.assert_allclose(f.mean, data.values.mean(dtype=np.float64), rtol=1e-6)
    for u in range(12):
        mine = data.users == u
        X = np.column_stack([f.items[data.items[mine]], np.ones(mine.sum())])
        target = data.values[mine] - f.mean - f.item_bias[data.items[mine]]
        A = X.T @ X + reg * (max(mine.sum(), 1) if by_count else 1) * np.eye(k + 1)
        desired = np.linalg.solve(A, X.T @ target)
        found = np.append(f.users[u], f.user_bias[u])
        np.testing.assert_allclose(found, desired, atol=tol, rtol=tol)
    assert not f.users[3].any()
    assert not f.items[4].any()


def test_implicit_als_is_the_least_squares_of_all_pairs():
    data = small()
    k, reg, alpha = 3, 0.5, 2.0
    state = recommender.implicit_als(data, k, sweeps=2, regularization=reg, alpha=alpha)
    R = np.zeros(data.shape)
    R[data.users, data.items] = data.values
    C, P, Y = 1 + alpha * R, (R > 0).astype(float), np.asarray(state.items)
    for u in range(12):
        A = Y.T @ (C[u][:, None] * Y) + reg * np.eye(k)
        np.testing.assert_allclose(
            state.users[u], np.linalg.solve(A, Y.T @ (C[u] * P[u])), atol=1e-10
        )
    assert state.mean == 0
    # Its objective falls from sweep to sweep.

    def objective(s):
        X, Y = np.asarray(s.users), np.asarray(s.items)
        return np.sum(C * (P - X @ Y.T) ** 2) + reg * (np.sum(X**2) + np.sum(Y**2))

    more = recommender.implicit_als(data, k, sweeps=1, regularization=reg, alpha=alpha, start=state)
    assert objective(more) < objective(state)
    zero = recommender.ratings([0, 0, 1], [0, 1, 1], [2.0, 0.0, 1.0])  # a zero is no feedback
    found = recommender.implicit_als(zero, 1, alpha=alpha)
    left = recommender.implicit_als(zero.select([0, 2]), 1, alpha=alpha)
    np.testing.assert_allclose(found.users, left.users, atol=1e-6)


def test_new_users_are_folded_in_as_the_fit_would():
    data = small()
    for fit, options in (
        (recommender.als, {"regularization": 0.3, "by_count": True}),
        (recommender.implicit_als, {"regularization": 0.3, "alpha": 2.0}),
    ):
        state = fit(data, 2, sweeps=3, **options)
        u = np.array([7, 0])
        mine = np.isin(data.users, u)
        new = recommender.ratings(
            np.where(data.users[mine] == 7, 0, 1), data.items[mine], data.values[mine], (2, 30)
        )
        more = recommender.fold_in(state, new, **options)
        assert more.users.shape == (14, 2)
        np.testing.assert_allclose(more.users[12:], state.users[u], atol=1e-10)
        np.testing.assert_allclose(more.user_bias[12:], state.user_bias[u], atol=1e-10)
        np.testing.assert_array_equal(more.items, state.items)


def test_unseen_users_and_items_fall_back_on_what_is_known():
    data = small(np.float32)
    for state in (recommender.sgd(data, 2, epochs=3), recommender.als(data, 2)):
        u, i = np.array([3, 3, -1, 99, 1, 1]), np.array([0, 4, 0, 4, 4, -1])
        found = recommender.predict(state, u, i)
        m, a, b = state.mean, state.user_bias, state.item_bias
        desired = np.array([m + b[0], m, m + b[0], m, m + a[1], m + a[1]])
        np.testing.assert_allclose(found, desired, rtol=1e-6)
    clipped = recommender.predict(state, data.users, data.items, bounds=(2.0, 3.0))
    assert clipped.min() >= 2
    assert clipped.max() <= 3


def test_duplicates_the_last_counts():
    data = recommender.ratings([4, 0, 4, 4], [1, 0, 1, 0], [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(data.users, [0, 4, 4])
    np.testing.assert_array_equal(data.items, [0, 1, 0])
    np.testing.assert_array_equal(data.values, [2, 3, 4])
    assert data.shape == (5, 2)


def test_recommend_is_the_sorted_list():
    data = small()
    state = recommender.als(data, 2)
    everyone = np.repeat(np.arange(12), 30), np.tile(np.arange(30), 12)
    scores = np.asarray(recommender.predict(state, *everyone)).reshape(12, 30)
    items, found = recommender.recommend(state, np.array([3, 0, 7, 7]), 5)
    np.testing.assert_array_equal(items, np.argsort(-scores[[3, 0, 7, 7]], 1, "stable")[:, :5])
    np.testing.assert_allclose(found, -np.sort(-scores[[3, 0, 7, 7]], 1)[:, :5])
    left = scores.copy()
    left[data.users, data.items] = -np.inf
    items, found = recommender.recommend(state, np.array([7, 2, 7]), 5, exclude_seen=data)
    np.testing.assert_array_equal(items, np.argsort(-left[[7, 2, 7]], 1, "stable")[:, :5])
    # User 0 has rated all but one item.
    items, found = recommender.recommend(state, 0, 3, exclude_seen=data)
    np.testing.assert_array_equal(items, [4, -1, -1])
    np.testing.assert_array_equal(np.isfinite(found), [True, False, False])


def test_ranking_by_brute_force():
    rng = np.random.default_rng(5)
    train = small()
    state = recommender.als(train, 2)
    u, i = rng.integers(0, 10, 60), rng.integers(0, 30, 60)
    new = ~np.isin(u * 30 + i, train.users * 30 + train.items)
    test = recommender.ratings(u[new], i[new], rng.integers(1, 6, new.sum()), (12, 30))
    n, seen = 4, set(zip(train.users, train.items, strict=True))
    precision, recall, ndcg = [], [], []
    for user in range(12):
        relevant = set(test.items[(test.users == user) & (test.values >= 3)])
        if not relevant:
            continue
        score = np.asarray(recommender.predict(state, np.full(30, user), np.arange(30)))
        ranked = [x for x in np.argsort(-score, kind="stable") if (user, x) not in seen][:n]
        hits = [x in relevant for x in ranked]
        precision.append(sum(hits) / n)
        recall.append(sum(hits) / len(relevant))
        gain = sum(h / np.log2(place + 2) for place, h in enumerate(hits))
        best = sum(1 / np.log2(place + 2) for place in range(min(n, len(relevant))))
        ndcg.append(gain / best)
    found = recommender.ranking(state, train, test, n, relevant=3)
    desired = np.mean(precision), np.mean(recall), np.mean(ndcg), len(recall)
    assert 0 < desired[0]
    np.testing.assert_allclose(found, desired, rtol=1e-12)
    nobody = recommender.ranking(state, train, test, n, relevant=9)
    assert np.isnan(nobody.ndcg)
    assert nobody.users == 0


def test_folds_and_cross_validation():
    data = small()
    tested = [test.users * 30 + test.items for _, test in recommender.folds(data, 4)]
    np.testing.assert_array_equal(
        np.sort(np.concatenate(tested)), np.sort(data.users * 30 + data.items)
    )
    for train, test in recommender.folds(data, 4):
        assert train.shape == data.shape
        assert train.values.size + test.values.size == data.values.size
    constant = lambda train: recommender.Factors(  # noqa: E731
        *map(jnp.zeros, [(12, 1), (30, 1), 12, 30]), jnp.asarray(train.values.mean())
    )
    errors = recommender.cross_validate(constant, data, 4)
    for fold, (train, test) in enumerate(recommender.folds(data, 4)):
        difference = test.values - train.values.mean()
        np.testing.assert_allclose(errors["rmse"][fold], np.sqrt(np.mean(difference**2)))
        np.testing.assert_allclose(errors["mae"][fold], np.mean(np.abs(difference)))


def test_state_saves_and_restores(tmp_path):
    state = recommender.als(small(), 2)
    path = tmp_path / "state.npz"
    recommender.save(path, state)
    recommender.save(path, state)  # over the old one
    for x, y in zip(recommender.restore(path), state, strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
    assert [x.name for x in tmp_path.iterdir()] == ["state.npz"]  # no part is left
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"wanted an \.npz file"):
        recommender.restore(path)
    np.savez(path, users=np.ones(2))
    with pytest.raises(ValueError, match=r"wanted the arrays .* got \['users'\]"):
        recommender.restore(path)
    with pytest.raises(FileNotFoundError):
        recommender.restore(tmp_path / "none.npz")
    with pytest.raises(TypeError, match="must be Factors"):
        recommender.save(path, state._asdict())


@pytest.mark.parametrize(
    "text",
    [
        "196\t242\t3\t881250949\n22\t7\t1.5\t878887116\n196\t7\t4\t5\n",
        "196::242::3::881250949\n22::7::1.5::878887116\n\n196::7::4::5\n",
        "userId,movieId,rating,timestamp\n196,242,3,881250949\n22,7,1.5,878887116\n196,7,4,5\n",
        "196 242 3\n22 7 1.5\n196 7 4\n",
    ],
    ids=["100k", "1M", "20M", "spaces"],
)
def test_formats_of_movielens(tmp_path, text):
    path = tmp_path / "ratings"
    path.write_text(text)
    data, names = recommender.load(path)
    found = set(zip(names.users[data.users], names.items[data.items], data.values, strict=True))
    assert found == {(196, 242, 3.0), (22, 7, 1.5), (196, 7, 4.0)}
    assert data.shape == (2, 2)


@pytest.mark.parametrize(
    "line", ["7\t8", "7\t8\tgood\t3", "7\t8\tnan\t3", "7\t8\t3\tnow", "1\t2\t3\t4\t5", "\t8\t3\t4"]
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "u.data"
    path.write_text(f"1\t2\t3\t4\n{line}\n5\t6\t1\t2\n")
    with pytest.raises(ValueError, match=r"u\.data, line 2: wanted `user item rating`"):
        recommender.load(path)


def test_files_with_names_duplicates_and_nothing(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("ann,rock,5,30\nbob,jazz,2,10\nann,rock,1,20\n")  # the last by time is the 5
    data, names = recommender.load(path)
    assert list(names.users) == ["ann", "bob"]
    found = set(zip(names.users[data.users], data.values, strict=True))
    assert found == {("ann", 5.0), ("bob", 2.0)}
    path.write_text("\n")
    with pytest.raises(ValueError, match="at least one line"):
        recommender.load(path)


def test_bad_input():
    data = small()
    with pytest.raises(ValueError, match="`values` must be finite, got nan in row 2"):
        recommender.ratings([0, 1, 2], [0, 1, 2], [1.0, 2.0, np.nan])
    with pytest.raises(ValueError, match="`users` must be >= 0, got -1 in row 1"):
        recommender.ratings([0, -1], [0, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="`items` must be < 3, got 5 in row 1"):
        recommender.ratings([0, 1], [0, 5], [1.0, 2.0], (2, 3))
    with pytest.raises(ValueError, match="must have one shape"):
        recommender.ratings([0, 1], [0, 1], [1.0])
    with pytest.raises(ValueError, match="at least one rating"):
        recommender.ratings([], [], [])
    with pytest.raises(TypeError, match="must be integers"):
        recommender.ratings([0.5], [0], [1.0])
    with pytest.raises(TypeError, match="must be real numbers"):
        recommender.ratings([0], [0], ["good"])
    with pytest.raises(TypeError, match="`data` must be Ratings"):
        recommender.sgd(np.eye(3), 2)
    with pytest.raises(ValueError, match="sgd: `k` must satisfy 1 <= k <= 12, got 13"):
        recommender.sgd(data, 13)
    with pytest.raises(ValueError, match="`learning_rate` must be a number > 0"):
        recommender.sgd(data, 2, learning_rate=0.0)
    with pytest.raises(ValueError, match="`regularization` must be a number > 0"):
        recommender.als(data, 2, regularization=0.0)
    with pytest.raises(ValueError, match=r"feedback >= 0, got -1\.0 of user 1 for item 0"):
        recommender.implicit_als(recommender.ratings([0, 1], [0, 0], [1.0, -1.0]), 1)
    state = recommender.als(data, 2)
    with pytest.raises(ValueError, match="`start` must have factors of shapes"):
        recommender.als(data, 3, start=state)
    with pytest.raises(ValueError, match="0 <= user < 12, got 12"):
        recommender.recommend(state, 12)
    with pytest.raises(ValueError, match="`n` must satisfy 1 <= n <= 30"):
        recommender.recommend(state, 0, 31)
    with pytest.raises(TypeError, match="`users` must hold integers"):
        recommender.predict(state, np.array([0.5]), np.array([0]))
    with pytest.raises(ValueError, match="at most the 30 items"):
        recommender.fold_in(state, recommender.ratings([0], [30], [1.0]))
    with pytest.raises(ValueError, match="`fraction` must be in"):
        recommender.split(data, 1.0)


@pytest.mark.x32
def test_double_values_become_single_without_a_warning_where_x64_is_off():
    with jax.enable_x64(False):
        data = recommender.ratings([0, 1], [1, 0], np.array([1.0, 2.0]), (2, 2))
    assert data.values.dtype == np.float32
    assert data.values.tolist() == [1, 2]


def test_files_that_are_no_text_or_hold_numbers_beyond_single_precision(tmp_path):
    path = tmp_path / "r.dat"
    for content in (b"1::2::3\n\xff::1::2\n", b"1::2::1e39\n", b"1::2::3::1e999\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"r\.dat") as caught:
            recommender.load(path)
        assert "\n" not in str(caught.value)
