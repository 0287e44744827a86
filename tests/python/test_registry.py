"""Versions in a store: aliases, removal, comparison, cleaning up. Nothing here needs libtorch."""

import hashlib
import json
import os
import subprocess
import time

import pytest
from harness import check_complete, environment, invoke, manifests, refused, snapshot, succeed

USAGE, CONFIG, DATA, NOT_FOUND, CONFLICT = 2, 10, 11, 13, 14
HASH = "0123456789abcdef" * 4


class Bench:
    """A store with three versions of a dataset."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.store = binary, folder, folder / "store"
        self.env = environment(folder / "tmp")
        for number in (1, 2, 3):
            self.register(number)

    def register(self, number, name="cells"):
        source = self.folder / f"{name}-{number}"
        (source / "deep").mkdir(parents=True, exist_ok=True)
        (source / "same.txt").write_text("same")
        (source / f"only-{number}.txt").write_text("x" * number)
        (source / "deep" / "size.bin").write_text("y" * number)
        (source / "content.bin").write_text(str(number))
        tags = ["--tag", f"site={number}"]
        return self.good("data", "register", "--name", name, source, "--description", f"number {number}", *tags, "--json")

    def good(self, *arguments):
        return succeed(self.binary, "--store", self.store, *arguments, env=self.env)

    def call(self, *arguments):
        return invoke(self.binary, "--store", self.store, *arguments, env=self.env)

    def put(self, key, text="debris"):
        path = self.store / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def age(self, key, hours):
        then = time.time() - hours * 3600
        os.utime(self.store / key, (then, then))

    def aliases(self):
        return {a: e["version"] for e in self.good("data", "list", "--json") for a in e["aliases"]}


@pytest.fixture
def bench(binary, tmp_path):
    return Bench(binary, tmp_path)


def test_alias_is_set_moved_shown_and_taken_away(bench):
    assert bench.aliases() == {}
    assert "'gold' is data:cells@2 now\n" in bench.good("data", "alias", "cells@2", "gold")
    before = snapshot(bench.store)
    assert "'gold' is data:cells@2 already" in bench.good("data", "alias", "data:cells@2", "gold")
    assert snapshot(bench.store) == before
    assert "'candidate' is data:cells@3 now" in bench.good("data", "alias", "cells@latest", "candidate")
    assert bench.good("data", "show", "cells@gold", "--json")["version"] == 2
    assert bench.good("data", "show", "cells@2", "--json")["aliases"] == ["gold"]
    assert "alias    gold" in bench.good("data", "show", "cells@gold")
    assert "'gold' is data:cells@3 now; it was 2" in bench.good("data", "alias", "cells@candidate", "gold")
    assert bench.aliases() == {"gold": 3, "candidate": 3}
    listed = next(line for line in bench.good("data", "list").splitlines() if line.startswith("data:cells@3"))
    assert "candidate, gold" in listed
    bench.good("data", "verify", "cells@gold")
    assert "it was 3" in bench.good("data", "unalias", "cells", "candidate")
    assert bench.aliases() == {"gold": 3}
    # the history is in the store, one object a move
    history = sorted((bench.store / "registry/data/cells/aliases/gold").iterdir())
    assert [path.name for path in history] == ["0000000001.json", "0000000002.json"]
    moves = [json.loads(path.read_text()) for path in history]
    assert [(m["format_version"], m["version"]) for m in moves] == [(1, 2), (1, 3)]
    check_complete(bench.store)


@pytest.mark.parametrize(
    "arguments, code, fragments",
    [
        (["data", "alias", "cells@9", "gold"], NOT_FOUND, ["data:cells@9", "its versions are 3, 2, 1"]),
        (["data", "alias", "cells@silver", "gold"], NOT_FOUND, ["data:cells@silver", "its aliases are 'good' (1)"]),
        (["data", "alias", "cells@1", "v7"], CONFIG, ["'v7' is not a valid alias"]),
        (["data", "alias", "cells@1", "latest"], CONFIG, ["'latest' is not a valid alias"]),
        (["data", "alias", "cells@1", "a/b"], CONFIG, ["'a/b' is not a valid alias"]),
        (["data", "alias", "model:cells@1", "gold"], USAGE, ["'model:cells@1' is a model, not a data"]),
        (["data", "unalias", "cells", "gold"], NOT_FOUND, ["no alias 'gold'", "'good' (1)"]),
        (["data", "show", "cells@gold"], NOT_FOUND, ["data:cells@gold", "its aliases are 'good' (1)"]),
        (["model", "alias", "cells@1", "gold"], NOT_FOUND, ["model:cells@1"]),
        (["data", "remove", "cells@1", "--reason", "x"], CONFLICT, ["data:cells@1 is 'good'"]),
        (["data", "remove", "cells@latest", "--reason", "x"], CONFIG, ["data:cells@latest", "write its number"]),
        (["data", "remove", "cells", "--reason", "x"], CONFIG, ["write its number"]),
        (["data", "remove", "cells@good", "--reason", "x"], CONFIG, ["write its number"]),
        (["data", "remove", "cells@2", "--reason", " "], CONFIG, ["in one line why"]),
        (["data", "remove", "cells@9", "--reason", "x"], NOT_FOUND, ["data:cells@9"]),
        (["data", "diff", "cells@1", "cells@9"], NOT_FOUND, ["data:cells@9"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(bench, arguments, code, fragments):
    bench.good("data", "alias", "cells@1", "good")
    before = snapshot(bench.store)
    refused(bench.call(*arguments), code, *fragments)
    assert snapshot(bench.store) == before


@pytest.mark.parametrize("arguments", [["data", "remove", "cells@1"], ["gc", "--older-than", "7"], ["gc", "--older-than", "1w"]])
def test_wrong_usage(bench, arguments):
    done = bench.call(*arguments)
    assert done.returncode == USAGE and done.stdout == ""
    assert "--reason" in done.stderr or "write a whole number and s, m, h or d" in done.stderr


def test_racing_moves_of_an_alias_are_all_kept(bench):
    command = [str(bench.binary), "--store", str(bench.store), "data", "alias"]
    racers = [subprocess.Popen([*command, f"cells@{n % 3 + 1}", "gold"], env=bench.env, stdout=subprocess.PIPE) for n in range(12)]
    said = [racer.communicate()[0].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 12
    history = sorted((bench.store / "registry/data/cells/aliases/gold").iterdir())
    moved = [text for text in said if "already" not in text]
    assert [path.name for path in history] == [f"{n:010}.json" for n in range(1, len(moved) + 1)]
    assert bench.aliases() == {"gold": json.loads(history[-1].read_text())["version"]}


def test_damaged_alias_and_removal_name_the_key(bench):
    bench.good("data", "alias", "cells@1", "gold")
    bench.good("data", "remove", "cells@2", "--reason", "a test")
    for key in ("registry/data/cells/aliases/gold/0000000001.json", "registry/data/cells/0000000002.removed.json"):
        assert json.loads((bench.store / key).read_text())["format_version"] == 1
        bench.put(key, '{"format_version": 1}')
    refused(bench.call("data", "show", "cells@gold"), DATA, "aliases/gold/0000000001.json", "damaged")
    refused(bench.call("data", "list"), DATA, "aliases/gold/0000000001.json")
    refused(bench.call("data", "show", "cells@2"), DATA, "0000000002.removed.json", "damaged")


def test_removed_version_is_hidden_and_says_why(bench):
    files = snapshot(bench.store)
    said = bench.good("data", "remove", "cells@3", "--reason", "wrong labels")
    assert "removed data:cells@3" in said and "medtune gc" in said
    assert [e["version"] for e in bench.good("data", "list", "--json")] == [1, 2]
    assert "cells@3" not in bench.good("data", "list")
    assert bench.good("data", "show", "cells", "--json")["version"] == 2
    today = time.strftime("%Y-", time.gmtime())
    line = refused(bench.call("data", "show", "cells@3"), NOT_FOUND, f"data:cells@3 was removed on {today}", "(wrong labels)")
    assert refused(bench.call("data", "remove", "cells@3", "--reason", "again"), NOT_FOUND) == line
    refused(bench.call("data", "verify", "cells@3"), NOT_FOUND, "wrong labels")
    everything = bench.good("data", "list", "--all", "--json")
    assert [e["version"] for e in everything] == [1, 2, 3]
    assert everything[2]["removed"]["reason"] == "wrong labels" and "removed" not in everything[1]
    assert "wrong labels" in bench.good("data", "list", "--all")
    # nothing was deleted or changed
    assert files.items() <= snapshot(bench.store).items()
    # the same content again is a new version: the number is not given twice
    assert bench.register(3)["version"] == 4
    assert bench.good("data", "show", "cells@latest", "--json")["version"] == 4


def test_diff(bench):
    found = bench.good("data", "diff", "cells@1", "cells@2", "--json")
    files = found["files"]
    assert [f["path"] for f in files["added"]] == ["only-2.txt"] and [f["path"] for f in files["removed"]] == ["only-1.txt"]
    assert [f["path"] for f in files["changed"]] == ["content.bin", "deep/size.bin"] and files["unchanged"] == 1
    size = files["changed"][1]
    assert (size["from"]["size"], size["to"]["size"]) == (1, 2)
    assert size["to"]["sha256"] == hashlib.sha256(b"yy").hexdigest()
    assert found["fields"] == [
        {"field": "description", "from": "number 1", "to": "number 2"},
        {"field": "tags.site", "from": "1", "to": "2"},
    ]
    text = bench.good("data", "diff", "cells@1", "cells@2")
    for line in (
        "files: 1 added, 1 removed, 2 changed, 1 unchanged",
        "  + only-2.txt (2 B)",
        "  - only-1.txt (1 B)",
        "  ~ content.bin (1 B, other content)",
        "  ~ deep/size.bin (1 B -> 2 B, +1 B)",
        '  ~ description: "number 1" -> "number 2"',
        '  ~ tags.site: "1" -> "2"',
    ):
        assert line in text.splitlines(), text
    same = bench.good("data", "diff", "cells@1", "cells@1")
    assert "files: 4 unchanged" in same and "are the same" in same


def test_gc_removes_debris_and_nothing_else(bench):
    bench.good("data", "alias", "cells@1", "gold")
    bench.good("data", "remove", "cells@2", "--reason", "a test")
    before = snapshot(bench.store)
    bench.put("data/cells/1/stray.txt", "12345")
    bench.put("data/cells/1/registered_model_meta")
    bench.put("data/cells/1/__pycache__/x.pyc")
    bench.put("data/cells/1/content.bin#1")
    claim = {"format_version": 1, "owner": "killed", "created": "2026-01-01T00:00:00Z", "nonce": "n"}
    bench.put("registry/data/cells/0000000004.claim.json", json.dumps(claim))
    bench.put("data/cells/4/half.bin", "1234567")
    bench.put(f"checkpoints/{HASH}/step-00000001/weights.safetensors")
    bench.put(f"runs/R/.run.json.{HASH[:32]}.partial")
    # a writer that is alive may be about to use it, so this one has to be a day old
    bench.age(f"runs/R/.run.json.{HASH[:32]}.partial", 25)
    bench.put("runs/R/run.json#1")
    step = {"format_version": 1, "fingerprint": "0a", "run_id": "r", "metrics": None, "outputs": {"data": "data:cells@2"}}
    bench.put("cache/steps/0a.json", json.dumps(step))
    bench.put("cache/steps/0b.json", json.dumps(step | {"fingerprint": "0b", "outputs": {"data": "data:cells@1"}}))
    mine = bench.put("data/mine/7/precious.txt")
    all_of_it = lambda: {p for p in bench.store.rglob("*") if p.is_file() and ".locks" not in p.parts}  # noqa: E731
    there = all_of_it()

    # everything is young
    done = bench.good("gc", "--older-than", "48h", "--json")
    assert done["removed"] == [] and {k["reason"] for k in done["kept"][:3]} == {"it was written too recently"}
    assert "nothing to remove" in bench.good("gc") and all_of_it() == there

    dry = bench.good("gc", "--older-than", "0s", "--dry-run", "--json")
    text = bench.good("gc", "--older-than", "0s", "--dry-run")
    assert "would remove 10 files" in text and "removed 10 files" not in text and all_of_it() == there
    done = bench.good("gc", "--older-than", "0s", "--json")
    assert done == dry | {"dry_run": False}
    assert {(d["kind"], d["key"], d["files"]) for d in done["removed"]} == {
        ("stray", "data/cells/1/stray.txt", 1),
        ("leftover", "data/cells/1/content.bin#1", 1),
        ("removed", "data/cells/2", 4),
        ("unfinished", "data/cells/4", 1),
        ("checkpoints", f"checkpoints/{HASH}", 1),
        ("leftover", f"runs/R/.run.json.{HASH[:32]}.partial", 1),
        ("cached-step", "cache/steps/0a.json", 1),
    }
    assert done["files"] == 10 and done["bytes"] == sum(d["bytes"] for d in done["removed"])
    assert next(d["bytes"] for d in done["removed"] if d["kind"] == "stray") == 5
    assert [k["key"] for k in done["kept"]] == ["data/mine", "runs/R/run.json#1"] and mine.exists()

    kept = {key: digest for key, digest in before.items() if not key.startswith("data/cells/2/")}
    assert kept.items() <= snapshot(bench.store).items()
    assert (bench.store / "data/cells/1/registered_model_meta").exists()
    assert (bench.store / "data/cells/1/__pycache__/x.pyc").exists()
    for version in (1, 3):
        bench.good("data", "verify", f"cells@{version}")
    refused(bench.call("data", "show", "cells@2"), NOT_FOUND, "a test")
    assert bench.good("gc", "--older-than", "0s", "--json")["removed"] == []
    # the claimed number is still somebody's
    assert bench.register(5)["version"] == 5
    assert [m["version"] for m in manifests(bench.store)[("data", "cells")]] == [1, 2, 3, 5]


def test_gc_takes_what_is_old_enough(bench):
    for key, hours in (("old.txt", 30), ("young.txt", 10)):
        bench.put(f"data/cells/1/{key}")
        bench.age(f"data/cells/1/{key}", hours)
    done = bench.good("gc", "--older-than", "1d", "--json")
    assert [d["key"] for d in done["removed"]] == ["data/cells/1/old.txt"]
    assert done["kept"] == [{"key": "data/cells/1/young.txt", "reason": "it was written too recently"}]
    text = bench.good("gc", "--older-than", "600m")
    assert "removed 1 file, 6 B" in text and "the version's manifest does not name it" in text
    check_complete(bench.store)


def test_gc_makes_no_store(bench, tmp_path):
    refused(invoke(bench.binary, "--store", tmp_path / "typo", "gc", env=bench.env), NOT_FOUND, "typo")
    assert not (tmp_path / "typo").exists()
