"""What Evaluate reports against scikit-learn, from scores that this file computes anew from the embeddings and the packages."""

import json

import numpy as np
import pytest
import torch
from conftest import KNN, LABELS
from figures import EXACT, check_figures, check_thresholds
from reference import Package
from sklearn import metrics

METHODS = ["zero-shot", "adapter", "knn"]


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


@pytest.mark.parametrize("method", METHODS)
def test_figures(run, reports, method):
    report, true, scores = reports[method], truth(run, "test"), scores_of(run, method, "test")
    assert report["n"] == len(true) and report["absent_classes"] == []
    assert [entry["label"] for entry in report["argmax"]["per_class"]] == LABELS
    check_figures(report, scores, true, len(LABELS))
    # where every class occurs, the mean is scikit-learn's own
    expected = metrics.roc_auc_score(true, scores, multi_class="ovr", average="macro")
    assert report["mauc"] == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_thresholded(run, reports, method):
    validation, test = ((scores_of(run, method, split), truth(run, split)) for split in ("validation", "test"))
    check_thresholds(reports[method], validation, test, len(LABELS))
