"""Writes metrics_golden.json beside this file: what scikit-learn says about small random problems.

    pip install scikit-learn && python tests/golden/make_metrics_golden.py

Made with scikit-learn 1.9.1 and NumPy 2.4. `src/evaluation/report_tests.rs` compares with it to 1e-9.
"""

import json
import pathlib
import warnings

import numpy as np
from sklearn import metrics

warnings.simplefilter("ignore")
GRID = [i / 20 for i in range(20)]


def prf(truth, predicted, average, **options):
    p, r, f, _ = metrics.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0, **options)
    return {"precision": float(p), "recall": float(r), "f1": float(f)}


def thresholds(scores, truth):
    chosen = []
    for c in range(scores.shape[1]):
        f1 = [metrics.f1_score(truth == c, scores[:, c] >= t, zero_division=0) for t in GRID]
        chosen.append(max(t for t, f in zip(GRID, f1) if f == max(f1)))
    return chosen


def problem(name, rng, n, classes, present, digits):
    def draw(rows):
        truth = rng.choice(present, rows)
        logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[truth]
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.round(scores, digits), truth

    (v_scores, v_truth), (scores, truth) = draw(n), draw(n)
    predicted = scores.argmax(axis=1)
    ids = list(range(classes))
    p, r, f, s = metrics.precision_recall_fscore_support(truth, predicted, labels=ids, zero_division=0)
    defined = [c for c in ids if 0 < (truth == c).sum() < n]
    auc = {c: float(metrics.roc_auc_score(truth == c, scores[:, c])) for c in defined}
    ap = {c: float(metrics.average_precision_score(truth == c, scores[:, c])) for c in defined}
    chosen = thresholds(v_scores, v_truth)
    indicator = np.eye(classes, dtype=int)[truth]
    positive = (scores >= np.array(chosen)).astype(int)
    return {
        "name": name, "classes": classes,
        "validation": {"scores": v_scores.ravel().tolist(), "truth": v_truth.tolist()},
        "test": {"scores": scores.ravel().tolist(), "truth": truth.tolist()},
        "expected": {
            "accuracy": float(metrics.accuracy_score(truth, predicted)),
            "mcc": float(metrics.matthews_corrcoef(truth, predicted)),
            "confusion": metrics.confusion_matrix(truth, predicted, labels=ids).tolist(),
            "per_class": [{"precision": float(p[c]), "recall": float(r[c]), "f1": float(f[c]), "support": int(s[c]),
                           "auc": auc.get(c), "average_precision": ap.get(c)} for c in ids],
            "macro": prf(truth, predicted, "macro"), "micro": prf(truth, predicted, "micro"),
            "thresholds": chosen,
            "thresholded_macro": prf(indicator, positive, "macro"),
            "thresholded_micro": prf(indicator, positive, "micro"),
            "mauc": float(np.mean(list(auc.values()))) if auc else None,
            "map": float(np.mean(list(ap.values()))) if ap else None,
        },
    }


def main():
    rng = np.random.default_rng(7)
    problems = [
        problem("binary", rng, 40, 2, [0, 1], 6),
        problem("many classes", rng, 60, 12, list(range(12)), 6),
        problem("absent classes", rng, 30, 6, [0, 2, 3], 6),
        problem("ties", rng, 50, 4, [0, 1, 2, 3], 1),
        problem("one class only", rng, 10, 3, [1], 6),
    ]
    full = problems[1]  # scikit-learn's own one-versus-rest mean, where every class occurs
    truth, scores = full["test"]["truth"], np.array(full["test"]["scores"]).reshape(-1, 12)
    rows = scores / scores.sum(axis=1, keepdims=True)
    if len(set(truth)) == 12:
        own = metrics.roc_auc_score(truth, rows, multi_class="ovr", average="macro")
        assert abs(own - full["expected"]["mauc"]) < 1e-6, (own, full["expected"]["mauc"])
    out = pathlib.Path(__file__).with_name("metrics_golden.json")
    out.write_text("[\n" + ",\n".join(json.dumps(p) for p in problems) + "\n]\n")


if __name__ == "__main__":
    main()
