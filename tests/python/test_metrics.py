"""What Evaluate reports against scikit-learn, from scores that this file computes anew from the embeddings and the packages."""

import json

import numpy as np
import pytest
import torch
from conftest import KNN, LABELS
from reference import Package
from sklearn import metrics

METHODS = ["zero-shot", "adapter", "knn"]
EXACT = 1e-9


def features(run, split):
    return np.load(run.data(f"{split}-embeddings") / "embeddings.npy", allow_pickle=False)


def truth(run, split):
    lines = run.data(f"{split}_text_tsv").read_text().splitlines()
    return np.array([json.loads(line.split("\t")[1])["class_id"] for line in lines])


def knn_scores(queries, references, classes, k):
    """Shares of votes [n, classes]: the k nearest by cosine, weighted by exp((cosine - 1) / 0.07)."""
    similarity = queries.astype(np.float64) @ references.astype(np.float64).T
    scores = np.zeros((len(queries), len(LABELS)))
    for row, values in enumerate(similarity):
        nearest = np.argsort(-values, kind="stable")[:k]
        weights = np.exp((values[nearest] - 1) / 0.07)
        np.add.at(scores[row], classes[nearest], weights)
        scores[row] /= weights.sum()
    return scores


def scores_of(run, method, split):
    vectors = features(run, split)
    if method == "knn":
        return knn_scores(vectors, features(run, "train"), truth(run, "train"), KNN)
    package = Package(run.model("zero-shot" if method == "zero-shot" else "adapter-classifier"))
    return package.scores(torch.from_numpy(vectors)).numpy()


@pytest.fixture(scope="module")
def reports(run):
    """{method: report}"""
    report = json.loads((run.data("report") / "report.json").read_text())
    methods = report["methods"] if isinstance(report, dict) else report
    return {entry["method"]: entry for entry in methods}


def averages(true, predicted, average, **options):
    values = metrics.precision_recall_fscore_support(true, predicted, average=average, zero_division=0, **options)
    return dict(zip(("precision", "recall", "f1"), values))


def best_thresholds(true, scores):
    """Per class, the threshold of 0, 0.05, ... 0.95 with the highest F1; of equals the highest."""
    chosen = []
    for column in range(scores.shape[1]):
        grid = [step / 20 for step in range(20)]
        f1 = [metrics.f1_score(true == column, scores[:, column] >= t, zero_division=0) for t in grid]
        chosen.append(max(t for t, value in zip(grid, f1) if value >= max(f1) - 1e-12))
    return np.array(chosen)


@pytest.mark.parametrize("method", METHODS)
def test_argmax(run, reports, method):
    report, true, scores = reports[method], truth(run, "test"), scores_of(run, method, "test")
    predicted = scores.argmax(axis=1)
    argmax, every = report["argmax"], list(range(len(LABELS)))
    assert report["n"] == len(true)
    assert argmax["confusion"] == metrics.confusion_matrix(true, predicted, labels=every).tolist()
    assert argmax["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=EXACT)
    assert argmax["mcc"] == pytest.approx(metrics.matthews_corrcoef(true, predicted), abs=EXACT)
    for average in ("macro", "micro"):
        assert argmax[average] == pytest.approx(averages(true, predicted, average), abs=EXACT)
    table = metrics.precision_recall_fscore_support(true, predicted, labels=every, zero_division=0)
    for i, entry in enumerate(argmax["per_class"]):
        assert entry["label"] == LABELS[i]
        for key, values in zip(("precision", "recall", "f1", "support"), table):
            assert entry[key] == pytest.approx(values[i], abs=EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_ranking(run, reports, method):
    report, true, scores = reports[method], truth(run, "test"), scores_of(run, method, "test")
    expected = metrics.roc_auc_score(true, scores, multi_class="ovr", average="macro")
    assert report["mauc"] == pytest.approx(expected, abs=EXACT)
    for i, entry in enumerate(report["argmax"]["per_class"]):
        assert entry["auc"] == pytest.approx(metrics.roc_auc_score(true == i, scores[:, i]), abs=EXACT)
        expected = metrics.average_precision_score(true == i, scores[:, i])
        assert entry["average_precision"] == pytest.approx(expected, abs=EXACT)
    assert report["absent_classes"] == []


@pytest.mark.parametrize("method", METHODS)
def test_thresholded(run, reports, method):
    chosen = best_thresholds(truth(run, "validation"), scores_of(run, method, "validation"))
    report = reports[method]["thresholded"]
    assert report["thresholds"] == pytest.approx(chosen.tolist(), abs=EXACT)
    true = truth(run, "test")[:, None] == np.arange(len(LABELS))
    predicted = scores_of(run, method, "test") >= chosen
    for average in ("macro", "micro"):
        assert report[average] == pytest.approx(averages(true, predicted, average), abs=EXACT)
