"""Every figure of an evaluation against scikit-learn on random problems, and intervals against NumPy, SciPy, statsmodels and simulation."""

import json
import subprocess
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from figures import EXACT, check_figures, check_thresholds
from scipy import stats
from sklearn import metrics
from statsmodels.stats.proportion import proportion_confint

GOALS = [["sensitivity", 0.9], ["sensitivity", 0.5], ["specificity", 0.9], ["specificity", 1.0]]
PROBLEMS = 1000


def problem(rng):
    """Scores and classes of one problem: few or many classes, some absent, with and without ties, 2 to 60 rows."""
    classes = int(rng.choice([2, 2, 3, 5, 12]))
    present = rng.permutation(classes)[: rng.integers(1, classes + 1)] if rng.random() < 0.3 else np.arange(classes)

    def draw():
        rows = int(rng.integers(2, 60))
        truth = rng.choice(present, rows)
        logits = rng.normal(size=(rows, classes)) + rng.choice([0, 1, 4]) * np.eye(classes)[truth]
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.round(scores, digits), truth

    digits = int(rng.choice([1, 2, 12]))
    return {"classes": classes, "validation": draw(), "test": draw()}


def document(found, **more):
    """A problem as the example program reads it."""
    parts = {name: {"scores": found[name][0].ravel().tolist(), "truth": found[name][1].tolist()} for name in ("validation", "test")}
    return json.dumps({"classes": found["classes"], "bootstrap": None, **parts, **more})


@pytest.fixture(scope="module")
def evaluate(binary):
    """Runs the example program over documents; one answer each."""

    def run(documents):
        program = binary.parent / "examples" / "evaluate"
        done = subprocess.run([program], input="\n".join(documents), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def check_calibration(found, scores, true, classes):
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == true
    edges = np.linspace(0, 1, 16)
    bins = np.searchsorted(edges[1:-1], confidence)  # as scikit-learn's calibration_curve
    gaps = {b: abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins)}
    assert found["ece"] == pytest.approx(sum((bins == b).mean() * gap for b, gap in gaps.items()), abs=EXACT)
    assert found["mce"] == pytest.approx(max(gaps.values()), abs=EXACT)
    assert [b["n"] for b in found["bins"]] == np.bincount(bins, minlength=15).tolist()
    onehot = np.eye(classes)[true]
    assert found["brier"] == pytest.approx(((scores - onehot) ** 2).sum(axis=1).mean(), abs=EXACT)
    of_truth = np.clip(scores[np.arange(len(true)), true], np.finfo(float).eps, 1 - np.finfo(float).eps)
    assert found["log_loss"] == pytest.approx(-np.log(of_truth).mean(), abs=EXACT)


def check_curves(found, scores, true):
    for c, entry in enumerate(found):
        positive = true == c
        if positive.all() or not positive.any():
            assert entry["roc"] is None and entry["precision_recall"] is None
            continue
        fpr, tpr, thresholds = metrics.roc_curve(positive, scores[:, c])
        roc = entry["roc"]
        assert roc["fpr"] == pytest.approx(fpr, abs=EXACT) and roc["tpr"] == pytest.approx(tpr, abs=EXACT)
        assert roc["thresholds"][0] is None and roc["thresholds"][1:] == pytest.approx(thresholds[1:], abs=EXACT)
        precision, recall, thresholds = metrics.precision_recall_curve(positive, scores[:, c], drop_intermediate=True)
        curve = entry["precision_recall"]
        assert curve["precision"] == pytest.approx(precision, abs=EXACT) and curve["recall"] == pytest.approx(recall, abs=EXACT)
        assert curve["thresholds"] == pytest.approx(thresholds, abs=EXACT)


def rates(true, scores, threshold):
    """((sensitivity, its rows), (specificity, its rows))"""
    predicted = scores >= threshold
    return ((predicted[true].mean() if true.any() else None, true.sum()), ((~predicted[~true]).mean() if (~true).any() else None, (~true).sum()))


def wilson(hits, groups=None):
    """The ends of Wilson's interval; with groups, of the rows that have the variance of statsmodels' cluster-robust mean, and SciPy's t quantiles."""
    hits = np.asarray(hits, float)
    rows = len(hits)
    if groups is not None:
        units = len(set(groups))
        if units == 1:
            return proportion_confint(hits.mean(), 1, method="wilson")
        freedom = stats.t.ppf(0.975, rows - 1) / stats.t.ppf(0.975, units - 1)
        if hits.any() and not hits.all():
            fit = sm.OLS(hits, np.ones(rows)).fit(cov_type="cluster", cov_kwds={"groups": np.unique(groups, return_inverse=True)[1]})
            rows = min(rows, hits.mean() * (1 - hits.mean()) / max(fit.bse[0] ** 2, 1e-300))
        rows *= freedom**2
    return proportion_confint(hits.mean() * rows, rows, method="wilson")


def check_operating_points(points, validation, test, classes):
    assert len(points) == classes * len(GOALS)
    for point, (c, (goal, target)) in zip(points, [(c, g) for c in range(classes) for g in GOALS]):
        positive, column = validation[1] == c, validation[0][:, c]
        assert (point["goal"], point["target"]) == (goal, target)
        if positive.all() or not positive.any():
            assert point["threshold"] is None and point["test"] is None
            continue
        which = 0 if goal == "sensitivity" else 1
        all_rates = {t: rates(positive, column, t) for t in np.unique(column)}
        reached = {t: r for t, r in all_rates.items() if r[which][0] >= target}
        if not reached:
            assert point["threshold"] is None
            continue
        best = max(r[1 - which][0] for r in reached.values())
        assert point["threshold"] in [t for t, r in reached.items() if r[1 - which][0] == best]
        for name, (scores, true) in (("validation", validation), ("test", test)):
            expected = rates(true == c, scores[:, c], point["threshold"])
            for found, (value, n) in zip((point[name]["sensitivity"], point[name]["specificity"]), expected):
                assert found["n"] == n and found["value"] == (None if n == 0 else pytest.approx(value, abs=EXACT))
                if n:
                    interval = stats.binomtest(round(value * n), n).proportion_ci(method="wilson")
                    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=EXACT)


@pytest.fixture(scope="module")
def solved(evaluate):
    rng = np.random.default_rng(11)
    problems = [problem(rng) for _ in range(PROBLEMS)]
    return list(zip(problems, evaluate([document(p, goals=GOALS) for p in problems])))


def test_a_thousand_problems(solved):
    kinds = {"ties": 0, "absent": 0, "binary": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found, answer in solved:
            (scores, true), classes, report = found["test"], found["classes"], answer["report"]
            check_figures(report, scores, true, classes)
            check_calibration(report["calibration"], scores, true, classes)
            check_curves(answer["curves"], scores, true)
            kinds["ties"] += len(np.unique(scores[:, 0])) < len(scores)
            kinds["absent"] += len(set(true)) < classes
            kinds["binary"] += classes == 2
    assert min(kinds.values()) > 200, kinds


def test_what_is_chosen_on_validation(solved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found, answer in solved[:60]:
            check_thresholds(answer["report"], found["validation"], found["test"], found["classes"])
            check_operating_points(answer["report"]["operating_points"], found["validation"], found["test"], found["classes"])


def split_mix(seed, epoch, count, bound):
    """The first numbers below `bound` of the stream (seed, epoch, 0)."""
    word, gamma = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(value):
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & word
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & word
        return value ^ (value >> 31)

    counter = mix((seed + gamma) & word)
    counter = mix(counter ^ ((epoch + gamma) & word))
    counter = mix(counter ^ gamma)
    return [(mix((counter + (i + 1) * gamma) & word) * bound) >> 64 for i in range(count)]


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_percentiles_of_what_scikit_learn_says_of_the_samples(evaluate, grouped):
    rng, resamples, seed = np.random.default_rng(3), 60, 9
    classes, rows = 3, 40
    truth = np.arange(rows) % classes
    scores = np.round(rng.dirichlet(np.ones(classes), rows) * 0.7 + 0.3 * np.eye(classes)[truth], 2)
    groups = rng.integers(0, 13, rows)
    groups = np.unique(groups, return_inverse=True)[1]
    found = {"classes": classes, "validation": (scores, truth), "test": (scores, truth)}
    bootstrap = {"resamples": resamples, "seed": seed, "groups": groups.tolist() if grouped else None}
    [answer] = evaluate([document(found, bootstrap=bootstrap)])
    samples = []
    for resample in range(resamples):
        units = groups.max() + 1 if grouped else rows
        drawn = split_mix(seed, resample, units, int(units))
        samples.append(np.concatenate([np.flatnonzero(groups == unit) for unit in drawn]) if grouped else np.array(drawn))
    intervals = answer["report"]["intervals"]
    assert intervals["units"] == (groups.max() + 1 if grouped else rows)
    chosen = np.array(answer["report"]["thresholded"]["thresholds"])

    def expect(name, of, entry=intervals, share=None):
        """Percentiles of `of`; for a share, that of right rows among some, at least as wide as Wilson's interval."""
        values = [of(truth[s], scores[s]) for s in samples]
        low, high = np.percentile([v for v in values if v is not None], [2.5, 97.5])
        if share is not None and share.any():
            ends = wilson((predicted == truth)[share], groups[share] if grouped else None)
            low, high = min(low, ends[0]), max(high, ends[1])
        assert (entry[name]["low"], entry[name]["high"]) == pytest.approx((low, high), abs=EXACT), name

    def over_classes(of):
        def value(t, s):
            return np.mean([of(t == c, s[:, c]) for c in range(classes) if 0 < (t == c).sum() < len(t)])

        return value

    def after_thresholds(t, s):
        return metrics.f1_score(t[:, None] == np.arange(classes), s >= chosen, average="macro", zero_division=0)

    predicted = scores.argmax(1)
    expect("accuracy", lambda t, s: metrics.accuracy_score(t, s.argmax(1)), share=np.full(rows, True))
    expect("macro_f1", lambda t, s: metrics.f1_score(t, s.argmax(1), average="macro", zero_division=0))
    expect("mcc", lambda t, s: metrics.matthews_corrcoef(t, s.argmax(1)))
    expect("mauc", over_classes(metrics.roc_auc_score))
    expect("mean_average_precision", over_classes(metrics.average_precision_score))
    expect("thresholded_macro_f1", after_thresholds)
    for c, entry in enumerate(intervals["per_class"]):
        of_class, as_class = truth == c, predicted == c
        expect("recall", lambda t, s: metrics.recall_score(t == c, s.argmax(1) == c) if (t == c).any() else None, entry, of_class)
        expect("f1", lambda t, s: metrics.f1_score(t == c, s.argmax(1) == c) if (t == c).any() else None, entry)
        expect("precision", lambda t, s: metrics.precision_score(t == c, s.argmax(1) == c, zero_division=0), entry, as_class)
        expect("auc", lambda t, s: metrics.roc_auc_score(t == c, s[:, c]) if 0 < (t == c).sum() < len(t) else None, entry)


def test_intervals_cover_the_truth(evaluate):
    """Of 400 simulated test sets, how many intervals of macro F1 hold what a million rows of the same kind give: 95 % are meant."""
    rng = np.random.default_rng(23)

    def draw(rows):
        truth = rng.integers(0, 3, rows)
        logits = rng.normal(size=(rows, 3)) + 1.2 * np.eye(3)[truth]
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), truth

    scores, truth = draw(1_000_000)
    true_value = metrics.f1_score(truth, scores.argmax(1), average="macro")
    problems = [{"classes": 3, "validation": part, "test": part} for part in (draw(200) for _ in range(400))]
    documents = [document(p, bootstrap={"resamples": 300, "seed": i, "groups": None}) for i, p in enumerate(problems)]
    intervals = [answer["report"]["intervals"]["macro_f1"] for answer in evaluate(documents)]
    covered = sum(i["low"] <= true_value <= i["high"] for i in intervals)
    assert 0.91 * 400 <= covered <= 0.985 * 400, covered


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.85])
def test_shares_of_patients_cover_the_truth(evaluate, rate):
    """Patients of one to nine images, most of them all right or all wrong: intervals that know of them cover, those of rows do not."""
    rng, simulated = np.random.default_rng(29), 400
    documents = []
    for _ in range(simulated):
        images = rng.integers(1, 10, 60)
        groups = np.repeat(np.arange(60), images)
        right = rng.random(len(groups)) < np.repeat(rng.beta(2 * rate / 3, 2 * (1 - rate) / 3, 60), images)
        truth = np.zeros(len(groups), int)
        scores = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
        part = (scores, truth)
        columns = {"all": ["one"] * len(groups)}
        for ids in (groups.tolist(), None):
            documents.append(document({"classes": 2, "validation": part, "test": part}, bootstrap={"resamples": 0, "seed": 0, "groups": ids}, columns=columns))
    shares = [answer["report"]["subgroups"][0]["groups"][0]["accuracy"] for answer in evaluate(documents)]
    covered = [np.mean([share["low"] <= rate <= share["high"] for share in shares[kind::2]]) for kind in (0, 1)]
    assert 0.91 <= covered[0] <= 0.99 and covered[1] < 0.8, covered


def test_shares_of_groups_are_those_of_statsmodels(evaluate):
    """Operating points and subgroups, on problems where groups are many, few, of one row, of all rows, and all right or all wrong."""
    rng, documents, problems = np.random.default_rng(31), [], []
    for number in range(200):
        found = problem(rng)
        (scores, truth), rows = found["test"], len(found["test"][1])
        groups = [rng.integers(0, max(2, rows // 3), rows), np.arange(rows), np.zeros(rows, int), truth, rng.integers(0, 2, rows)][number % 5]
        groups = np.unique(groups, return_inverse=True)[1]
        part = rng.choice(["a", "b"], rows)
        part[0] = "a"
        problems.append((found, groups, part))
        documents.append(document(found, goals=GOALS, bootstrap={"resamples": 0, "seed": 0, "groups": groups.tolist()}, columns={"part": part.tolist()}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (found, groups, part), answer in zip(problems, evaluate(documents), strict=True):
            (scores, truth), report = found["test"], answer["report"]
            assert report["intervals"] is None
            checks = [(group["accuracy"], scores.argmax(1) == truth, part == group["value"]) for group in report["subgroups"][0]["groups"]]
            for at, point in enumerate(report["operating_points"]):
                if point["threshold"] is not None:
                    true, positive = truth == at // len(GOALS), scores[:, at // len(GOALS)] >= point["threshold"]
                    checks += [(point["test"]["sensitivity"], positive, true), (point["test"]["specificity"], ~positive, ~true)]
            for share, right, rows in checks:
                assert share["n"] == rows.sum()
                if rows.any():
                    assert (share["low"], share["high"]) == pytest.approx(wilson(right[rows], groups[rows]), abs=1e-8)


def test_subgroups_are_the_figures_of_their_rows(evaluate):
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 90)
    scores = np.round(rng.dirichlet(np.ones(3), 90) + 0.5 * np.eye(3)[truth], 3)
    sex = rng.choice(["f", "m", None], 90)
    found = {"classes": 3, "validation": (scores, truth), "test": (scores, truth)}
    [answer] = evaluate([document(found, columns={"sex": sex.tolist()})])
    [table] = answer["report"]["subgroups"]
    assert [g["value"] for g in table["groups"]] == ["f", "m", "(none)"]
    for group, value in zip(table["groups"], ["f", "m", None]):
        rows = np.array([s == value for s in sex])
        predicted = scores[rows].argmax(1)
        assert group["n"] == rows.sum()
        assert group["accuracy"]["value"] == pytest.approx(metrics.accuracy_score(truth[rows], predicted), abs=EXACT)
        assert group["macro_f1"] == pytest.approx(metrics.f1_score(truth[rows], predicted, average="macro", zero_division=0), abs=EXACT)
        auc = [metrics.roc_auc_score(truth[rows] == c, scores[rows][:, c]) for c in range(3)]
        assert group["mauc"] == pytest.approx(np.mean(auc), abs=EXACT)
