"""The pages of an evaluation, and of two side by side, in a browser: they ask for nothing, fit their window, and can be read in light, in dark, on a phone and on paper."""

import json
import subprocess
import xml.etree.ElementTree

import numpy as np
import pytest
from browser import Browser
from sklearn import metrics

HOSTILE = "<script>document.title='taken'</script><img src=\"https://example.org/x.png\" onerror='document.title=\"taken\"'>&amp;\u202e\u0007"
ENDLESS = "endless" * 40
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")


def share(hits, n):
    """A share and Wilson's interval."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    z, p = 1.959963984540054, hits / n
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"value": p, "low": max(middle - half, 0), "high": min(middle + half, 1), "n": int(n)}


def around(value, width=0.03):
    return {"low": value - width, "high": min(value + width * 0.9, 1)}


def prf(truth, predicted, **how):
    found = metrics.precision_recall_fscore_support(truth, predicted, zero_division=0, **how)
    return dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))


def method(kind, labels, truth, skill, rng, groups):
    """A report and curves of made-up scores, all figures by scikit-learn; intervals are made up, too."""
    classes, n = len(labels), len(truth)
    scores = rng.normal(size=(n, classes))
    scores[np.arange(n), truth] += skill
    scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    predicted, confidence = scores.argmax(1), scores.max(1)
    one = np.eye(classes)[truth]
    per_class, curves, points = [], [], []
    for c, label in enumerate(labels):
        is_c, column = truth == c, scores[:, c]
        entry = prf(is_c, predicted == c, average="binary") | {"label": label, "support": int(is_c.sum()), "auc": None, "average_precision": None}
        curve = {"label": label, "roc": None, "precision_recall": None}
        point = {"label": label, "goal": "sensitivity", "target": 0.95, "threshold": None, "validation": None, "test": None}
        if is_c.any():
            entry |= {"auc": float(metrics.roc_auc_score(is_c, column)), "average_precision": float(metrics.average_precision_score(is_c, column))}
            fpr, tpr, thresholds = metrics.roc_curve(is_c, column)
            curve["roc"] = {"fpr": fpr.tolist(), "tpr": tpr.tolist(), "thresholds": [None, *thresholds[1:].tolist()]}
            precision, recall, thresholds = metrics.precision_recall_curve(is_c, column)
            curve["precision_recall"] = {"precision": precision.tolist(), "recall": recall.tolist(), "thresholds": thresholds.tolist()}
            at = float(np.quantile(column[is_c], 0.05))
            rates = {"sensitivity": share((column >= at)[is_c].sum(), is_c.sum()), "specificity": share((column < at)[~is_c].sum(), (~is_c).sum())}
            point |= {"threshold": at, "validation": rates, "test": rates}
        per_class.append(entry)
        curves.append(curve)
        points += [point, point | {"goal": "specificity"}]
    edges = np.linspace(0, 1, 16)
    bins = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        mean = (float(confidence[inside].mean()), float((predicted == truth)[inside].mean())) if inside.any() else (None, None)
        bins.append({"low": low, "high": high, "n": int(inside.sum()), "confidence": mean[0], "accuracy": mean[1]})
    gaps = [(b["n"], abs(b["confidence"] - b["accuracy"])) for b in bins if b["n"]]
    auc, ap = ([c[name] for c in per_class if c[name] is not None] for name in ("auc", "average_precision"))
    accuracy = float((predicted == truth).mean())
    macro = prf(truth, predicted, average="macro")
    mcc = float(metrics.matthews_corrcoef(truth, predicted))
    tables = []
    for column, values in groups.items():
        table = {"column": column, "groups": []}
        for value in sorted(set(values)):
            rows = values == value
            f1 = prf(truth[rows], predicted[rows], average="macro")["f1"]
            right = share((predicted == truth)[rows].sum(), rows.sum())
            table["groups"].append({"value": str(value), "n": int(rows.sum()), "accuracy": right, "macro_f1": f1, "mauc": None if rows.sum() < 9 else float(np.mean(auc))})
        tables.append(table)
    report = kind | {
        "n": n,
        "argmax": {
            "accuracy": accuracy,
            "macro": macro,
            "micro": prf(truth, predicted, average="micro"),
            "mcc": mcc,
            "per_class": per_class,
            "confusion": metrics.confusion_matrix(truth, predicted, labels=range(classes)).tolist(),
        },
        "thresholded": {"thresholds": [0.35] * classes, "macro": macro, "micro": macro},
        "mauc": float(np.mean(auc)),
        "mean_average_precision": float(np.mean(ap)),
        "absent_classes": [c["label"] for c in per_class if c["support"] == 0],
        "calibration": {
            "ece": sum(count * gap for count, gap in gaps) / n,
            "mce": max(gap for _, gap in gaps),
            "brier": float(((scores - one) ** 2).sum(1).mean()),
            "log_loss": float(-np.log(scores[np.arange(n), truth]).mean()),
            "bins": bins,
        },
        "intervals": {
            "level": 0.95,
            "resamples": 1000,
            "seed": 42,
            "group": "patient",
            "units": n // 3,
            "accuracy": around(accuracy),
            "macro_f1": around(macro["f1"]),
            "mcc": around(mcc),
            "mauc": around(float(np.mean(auc)), 0.01),
            "mean_average_precision": around(float(np.mean(ap))),
            "thresholded_macro_f1": around(macro["f1"]),
            "per_class": [{name: around(c[name], 0.08) for name in ("precision", "recall", "f1")} | {"auc": None if c["auc"] is None else around(c["auc"])} for c in per_class],
        },
        "operating_points": points,
        "subgroups": tables,
    }
    return report, curves


def document(labels, rows, kinds, seed, values=("clinic A", "clinic B", "(none)"), requirements=()):
    """What the example program takes."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.3, 2, len(labels))
    # the last class has no row
    weights[-1] = 0
    truth = rng.choice(len(labels), rows, p=weights / weights.sum())
    groups = {"site": rng.choice(values, rows, p=[0.75, 0.24, 0.01]), "age": np.where(rng.random(rows) < 0.3, "under 50", "50 and over")}
    made = [method(kind, labels, truth, 1.2 + n, rng, groups) for n, kind in enumerate(kinds)]
    return {
        "title": "digits-report",
        "created": "2026-03-04T05:06:07Z",
        "code_version": "3f9c0a17d2b4",
        "format_version": 1,
        "classifiers": {},
        "inputs": {
            name: {"reference": f"data:digits-{name.replace('_', '-')}@3", "sha256": f"{n:x}" * 64}
            for n, name in enumerate(("adapter_mlflow_model", "test_embeddings", "test_text_tsv"))
        },
        "labels": labels,
        "methods": [report for report, _ in made],
        "curves": [curves for _, curves in made],
        "requirements": list(requirements),
    }


def requirement(metric, condition, value, met):
    return {"metric": metric, "condition": condition, "value": value, "met": met}


def small():
    labels = ["esophagitis", "polyp", "cecum", "pylorus", "normal z-line", "blood in lumen"]
    requirements = [requirement("adapter.macro_f1", ">= 0.74", 0.7398, False), requirement("adapter.accuracy.low", ">= 0.5", 0.6412, True), requirement("knn.mauc", ">= 0.9", None, False)]
    return document(labels, 700, [{"method": "zero-shot"}, {"method": "adapter"}, {"method": "knn", "k": 64}], 1, requirements=requirements)


def hostile():
    """More classes than there are colours, labels that want to be more than text, and one without end."""
    labels = [HOSTILE, ENDLESS, "\u8179\u819c\u5185\u89c6\u955c\u68c0\u67e5\u5f02\u5e38" * 5, "\u0627\u0644\u0645\u0631\u064a\u0621", "a", "", "of several words, all of them quite long, as found in templates of reports", *(f"class {n}" for n in range(15))]
    made = document(labels, 900, [{"method": "adapter"}], 2, values=(HOSTILE, ENDLESS, "(none)"), requirements=[requirement(HOSTILE, ENDLESS, 0.5, True)])
    made["inputs"][ENDLESS] = {"reference": f"file:///{ENDLESS}", "sha256": HOSTILE}
    return made | {"title": ENDLESS, "created": HOSTILE, "code_version": ENDLESS}


def many():
    return document([f"finding number {n}" for n in range(40)], 2500, [{"method": "adapter"}], 3)


def compared():
    """Another test set, one class exchanged and the others under other ids; kNN is better, the adapter the same but for a few rows; one
    method each is in one only."""
    first = small()
    labels = [*first["labels"][1:], "retroflex rectum"]
    kinds = [{"method": "knn", "k": 5}, {"method": "adapter"}, {"method": "other"}, {"method": "knn", "k": 64}]
    second = document(labels, 650, kinds, 9, requirements=first["requirements"])
    del second["methods"][2], second["curves"][2]
    del second["inputs"]["test_embeddings"]
    # an earlier evaluation, without all that can be left out
    second["methods"][2] |= {"intervals": None, "thresholded": None, "operating_points": []}
    second["inputs"]["test_text_tsv"]["sha256"] = "f" * 64
    return [first, second | {"title": "digits-report-2"}]


def hostile_pair():
    first = hostile()
    return [first, hostile() | {"labels": first["labels"][3:], "created": ""}]


def strangers():
    """Nothing in common, and nothing was asked for."""
    return [many(), small() | {"requirements": [], "methods": small()["methods"][:1]}]


CASES = {"small": small, "hostile": hostile, "many": many}
PAIRS = {"compared": compared, "hostile pair": hostile_pair, "strangers": strangers}
PAGES = [*CASES, *PAIRS]

# elements with text of their own that is hard to tell from what is behind it, as [contrast, text]
CONTRAST = """(() => {
  const parse = text => { const p = text.match(/[\\d.]+/g).map(Number); return [p[0], p[1], p[2], p.length > 3 ? p[3] : 1]; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = element => element ? over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement)) : [255, 255, 255];
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || ['title', 'desc', 'STYLE'].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), svg = element.tagName === 'text';
    const ground = behind(svg ? element.ownerSVGElement : element);
    const ink = over(parse(svg ? style.fill : style.color), ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push([contrast, element.textContent.slice(0, 40)]);
  }
  return found;
})()"""

# texts in pictures that are cut off, or smaller than can be read
PICTURES = """[...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBoundingClientRect(), picture = text.ownerSVGElement.getBoundingClientRect();
  const size = parseFloat(getComputedStyle(text).fontSize) * picture.width / text.ownerSVGElement.viewBox.baseVal.width;
  return size < 8 || box.left < picture.left - 1 || box.right > picture.right + 1 || box.top < picture.top - 1 || box.bottom > picture.bottom + 1;
}).map(text => text.textContent)"""

# lines of plots that are faint: 3 to 1 is asked of what must be seen to understand a picture
LINES = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('.plot path')].map(path => getComputedStyle(path).stroke).filter(stroke => {
    const [a, b] = [light(stroke), ground].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 3;
  });
})()"""

STRUCTURE = """({
  language: document.documentElement.lang,
  title: document.title,
  scripts: document.querySelectorAll('script, img, link, iframe, object, embed, base').length,
  handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
  loaded: performance.getEntriesByType('resource').map(e => e.name),
  svgs: document.querySelectorAll('svg').length,
  untitled: [...document.querySelectorAll('svg')].filter(s => s.getAttribute('role') !== 'img' || s.children[0].tagName !== 'title' || !s.children[0].textContent.trim() || s.children[1].tagName !== 'desc' || !s.children[1].textContent.trim()).length,
  tables: document.querySelectorAll('table').length,
  uncaptioned: [...document.querySelectorAll('table')].filter(t => !t.caption || !t.caption.textContent.trim()).length,
  unscoped: [...document.querySelectorAll('th')].filter(t => !t.scope).length,
  levels: [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => Number(h.tagName[1])),
  broken: [...document.querySelectorAll('a')].filter(a => !document.getElementById(a.hash.slice(1))).length,
  twice: [...document.querySelectorAll('[id]')].map(e => e.id).filter((id, n, all) => all.indexOf(id) !== n),
  ragged: [...document.querySelectorAll('table')].filter(t => new Set([...t.tBodies[0].rows].map(r => r.cells.length)).size > 1).length,
})"""


@pytest.fixture(scope="module")
def pages(binary, tmp_path_factory):
    """Rendered folders by case."""
    program = binary.parent / "examples" / "report"
    assert program.is_file(), f"{program} is not built; run cargo build --example report"
    folders = {}
    for name, case in CASES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        subprocess.run([program, folders[name]], input=json.dumps(case()), text=True, check=True)
    for name, case in PAIRS.items():
        folders[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        subprocess.run([program, folders[name], "compare"], input=json.dumps(case()), text=True, check=True)
    return folders


def page_in(folder):
    [page] = folder.glob("*.html")
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.mark.parametrize("case", PAGES)
def test_asks_for_nothing_and_runs_nothing(pages, browser, case):
    page = page_in(pages[case])
    assert browser.open(page) == [page.as_uri()]
    complaints = [event for event in browser.events if event.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    assert not complaints
    found = browser.evaluate(STRUCTURE)
    assert found["scripts"] == found["handlers"] == 0 and found["loaded"] == []
    assert found["title"].endswith(": comparison" if case in PAIRS else ": evaluation report")
    # text is there as text
    if case.startswith("hostile"):
        assert browser.evaluate("document.body.innerText").count("<script>document.title='taken'</script>") >= (3 if case in PAIRS else 5)


def test_the_policy_holds(browser, tmp_path, pages):
    """Were there something in the page that loads or runs, it would not."""
    page = tmp_path / "report.html"
    harm = "<script>document.title='taken'</script><img src='https://example.org/x.png' onerror=\"document.title='taken'\">"
    page.write_text((pages["small"] / "report.html").read_text().replace("<main>", f"<main>{harm}"))
    browser.look(1280)
    browser.open(page)
    assert browser.evaluate("document.title") == "digits-report: evaluation report"


@pytest.mark.parametrize("case", PAGES)
def test_can_be_understood_without_eyes(pages, browser, case):
    browser.open(page_in(pages[case]))
    found = browser.evaluate(STRUCTURE)
    assert found["language"] == "en" and found["svgs"] >= (0 if case == "strangers" else 3) and found["tables"] >= (1 if case in PAIRS else 6)
    assert [found[name] for name in ("untitled", "uncaptioned", "unscoped", "broken", "ragged")] == [0] * 5
    assert found["twice"] == []
    levels = found["levels"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", PAGES)
def test_fits_and_can_be_read(pages, browser, case, width, scheme, tmp_path):
    browser.look(width, scheme=scheme)
    browser.open(page_in(pages[case]))
    browser.screenshot(tmp_path / f"{case}-{width}-{scheme}.png")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert browser.evaluate("[...document.querySelectorAll('details')].map(d => d.open = true).length") > 0 or case in PAIRS
    assert browser.evaluate(CONTRAST) == []
    assert browser.evaluate(PICTURES) == []
    assert browser.evaluate(LINES) == []


@pytest.mark.parametrize("case", PAGES)
def test_prints_in_light_colours(pages, browser, case, tmp_path):
    # the width of A4 between its margins
    browser.look(688, scheme="dark", media="print")
    browser.open(page_in(pages[case]))
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = browser.evaluate("[...document.querySelectorAll('table:not(.broad)')].filter(t => t.offsetWidth > 688).map(t => t.caption.textContent)")
    assert wide == []
    browser.pdf(tmp_path / f"{case}.pdf")
    assert (tmp_path / f"{case}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("case", CASES)
def test_plots_stand_alone(pages, browser, case, tmp_path):
    """Each is a file that any program can read, with its words, and its letters are where they can be seen."""
    files = sorted(pages[case].glob("*.svg"))
    kinds = {"confusion", "precision-recall", "reliability", "roc"} - ({"confusion"} if case == "many" else set())
    assert {path.stem.split("-", 1)[1] for path in files if path.stem.startswith("adapter")} == kinds
    browser.look(1280)
    for path in files:
        root = xml.etree.ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("role") == "img"
        assert [child.tag.split("}")[1] for child in root[:2]] == ["title", "desc"] and root[0].text and root[1].text
        assert browser.open(path) == [path.as_uri()]
        assert browser.evaluate(PICTURES) == [], path
        browser.screenshot(tmp_path / f"{path.stem}.png")


def test_what_differs_is_said(pages, browser):
    """The figures of both are in the page with their difference, and all that makes them hard to compare."""
    first, second = compared()
    browser.look(1280)
    browser.open(page_in(pages["compared"]))
    said = browser.evaluate("document.querySelector('[aria-labelledby=summary]').innerText")
    assert "evaluated on different test sets" in said and "Only in the first: zero-shot." in said and "Only in the second: kNN (k 5)." in said
    assert "Only the first knows these classes, so figures of whole evaluations are over other classes: esophagitis." in said and "retroflex rectum." in said
    assert "The second missed what was required when it was evaluated: adapter.macro_f1 is 0.7398, not >= 0.74" in said
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")[2:4] == ["Method: adapter", "Method: kNN (k 64)"]
    rows = "[...document.getElementById('ID').closest('table').tBodies[0].rows].map(r => [...r.cells].map((c, n) => n ? c.innerText.split('\\n')[0].trim() : c.innerText.replace(/\\s+/g, ' ').trim()))"
    figures = {row[0]: row[1:5] for row in browser.evaluate(rows.replace("ID", "adapter-figures"))}
    a, b = first["methods"][1], second["methods"][1]
    for shown, values in (("accuracy", [m["argmax"]["accuracy"] for m in (a, b)]), ("ECE (0 is best)", [m["calibration"]["ece"] for m in (a, b)])):
        sign = f"{values[1] - values[0]:+.3f}".replace("-", "\u2212")
        assert figures[shown][:3] == [f"{values[0]:.3f}", f"{values[1]:.3f}", sign]
    for shown, name, value in (("accuracy", "accuracy", lambda m: m["argmax"]["accuracy"]), ("mAUC", "mauc", lambda m: m["mauc"]), ("MCC", "mcc", lambda m: m["argmax"]["mcc"])):
        spans = [m["intervals"][name] for m in (a, b)]
        apart = spans[0]["high"] < spans[1]["low"] or spans[1]["high"] < spans[0]["low"]
        assert figures[shown][2:] == [f"{value(b) - value(a):+.3f}".replace("-", "\u2212"), "apart" if apart else "overlap"]
    assert figures["ECE (0 is best)"][3] == "\u2013"
    # one without intervals and thresholds
    knn = {row[0]: row[1:5] for row in browser.evaluate(rows.replace("ID", "knn-figures"))}
    better = second["methods"][2]["argmax"]["accuracy"] - first["methods"][2]["argmax"]["accuracy"]
    assert better > 0.02 and knn["accuracy"][2:] == [f"+{better:.3f}", "\u2013"] and knn["thresholded macro F1"][1:] == ["\u2013"] * 3
    notes = browser.evaluate("[...document.querySelectorAll('.note')].map(n => n.innerText)")
    assert any(note.startswith("Intervals of the first: 1000 bootstrap samples of 233 groups by patient") and note.endswith("of the second: none were asked for.") for note in notes)
    # by label, although their ids differ
    classes = {row[0].split(" ", 1)[-1]: row[1:] for row in browser.evaluate(rows.replace("ID", "adapter-classes"))}
    assert len(classes) == 5 and not any("esophagitis" in label for label in classes)
    of = {m: {c["label"]: c for c in report["argmax"]["per_class"]} for m, report in (("a", a), ("b", b))}
    found = next(row for label, row in classes.items() if label.endswith("polyp"))
    for n, name in enumerate(("recall", "f1", "auc")):
        values = [of[m]["polyp"][name] for m in "ab"]
        assert found[3 * n : 3 * n + 3] == [f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[1] - values[0]:+.3f}".replace("-", "\u2212")]
    assert found[-1] == f"{of['a']['polyp']['support']} / {of['b']['polyp']['support']}"
    # each side's own matrix and diagram
    for place, report in (("first", a), ("second", b)):
        matrix = browser.evaluate(rows.replace("ID", f"adapter-{place}-confusion"))
        assert [int(cell) for cell in matrix[1][1:-1]] == report["argmax"]["confusion"][1]
        plots = browser.evaluate("[...document.querySelectorAll('.plot')].map(p => [p.children[0].textContent, p.children[1].textContent])")
        [described] = [text for title, text in plots if title == f"Reliability diagram, adapter, {place}"]
        assert described.startswith(f"Expected calibration error {report['calibration']['ece']:.3f},")
    origin = {row[0]: row[3] for row in browser.evaluate(rows.replace("ID", "inputs"))}
    assert origin == {"adapter_mlflow_model": "the same", "test_embeddings": "only of the first", "test_text_tsv": "another"}
