"""What a method's report says, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

EXACT = 1e-9


def averages(true, predicted, average, **options):
    values = metrics.precision_recall_fscore_support(true, predicted, average=average, zero_division=0, **options)
    return dict(zip(("precision", "recall", "f1"), values))


def mean(values):
    return pytest.approx(np.mean(values), abs=EXACT) if len(values) else None


def check_figures(report, scores, true, classes):
    predicted, every = scores.argmax(axis=1), list(range(classes))
    argmax = report["argmax"]
    assert argmax["confusion"] == metrics.confusion_matrix(true, predicted, labels=every).tolist()
    assert argmax["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=EXACT)
    assert argmax["mcc"] == pytest.approx(metrics.matthews_corrcoef(true, predicted), abs=EXACT)
    for average in ("macro", "micro"):
        assert argmax[average] == pytest.approx(averages(true, predicted, average), abs=EXACT)
    table = metrics.precision_recall_fscore_support(true, predicted, labels=every, zero_division=0)
    for i, entry in enumerate(argmax["per_class"]):
        assert [entry[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx([column[i] for column in table], abs=EXACT)
    defined = [c for c in every if 0 < (true == c).sum() < len(true)]
    auc = {c: metrics.roc_auc_score(true == c, scores[:, c]) for c in defined}
    precision = {c: metrics.average_precision_score(true == c, scores[:, c]) for c in defined}
    assert report["mauc"] == mean(list(auc.values())) and report["mean_average_precision"] == mean(list(precision.values()))
    for c, entry in enumerate(argmax["per_class"]):
        assert entry["auc"] == (pytest.approx(auc[c], abs=EXACT) if c in auc else None)
        assert entry["average_precision"] == (pytest.approx(precision[c], abs=EXACT) if c in auc else None)


def best_thresholds(true, scores):
    """Per class, the threshold of 0, 0.05, ... 0.95 with the highest F1; of equals the highest."""
    chosen = []
    for column in range(scores.shape[1]):
        grid = [step / 20 for step in range(20)]
        f1 = [metrics.f1_score(true == column, scores[:, column] >= t, zero_division=0) for t in grid]
        chosen.append(max(t for t, value in zip(grid, f1) if value >= max(f1) - 1e-12))
    return np.array(chosen)


def check_thresholds(report, validation, test, classes):
    (v_scores, v_true), (scores, true) = validation, test
    chosen = best_thresholds(v_true, v_scores)
    found = report["thresholded"]
    assert found["thresholds"] == pytest.approx(chosen.tolist(), abs=EXACT)
    indicator, positive = true[:, None] == np.arange(classes), scores >= chosen
    for average in ("macro", "micro"):
        assert found[average] == pytest.approx(averages(indicator, positive, average), abs=EXACT)
