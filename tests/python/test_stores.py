"""Publishing on every kind of store, from many processes at once and with a publisher that is killed: folders, S3, Azure, and both
behind a network that loses answers and a service that is busy."""

import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import Folder, counts, faulty
from stores import Place, random_file

# what a folder holds until a file gets its name
UNFINISHED = re.compile(r"#\d+$")
# seconds after which whoever held a lock and was killed counts as gone
LEASE = 3
WRITERS, EACH = 16, 5
BAD_NETWORK = {
    "s3": ["--lost-ack", 0.2, "--busy", 0.1, "--conflict", 0.05],
    "az": ["--lost-ack", 0.2, "--busy", 0.1],
}


@pytest.fixture
def server(kind, request, tmp_path):
    """The server of this kind."""
    return Folder(tmp_path / "store") if kind == "folder" else request.getfixturevalue(kind)


def race(place, files):
    """16 publishers at a time, 80 in all, each with a content of its own: the file by number."""
    files.mkdir()

    def write(writer):
        made = {}
        for turn in range(EACH):
            path = files / f"{writer}-{turn}.txt"
            path.write_text(f"turn {turn} of writer {writer}\n")
            # tags make them strangers to each other: none may take up what another has begun
            found = place.good("data", "register", "--name", "race", "--tag", f"writer={writer}", path, "--json")
            made[found["version"]] = path
        return made

    with ThreadPoolExecutor(WRITERS) as pool:
        made = list(pool.map(write, range(WRITERS)))
    versions = {number: path for of_writer in made for number, path in of_writer.items()}
    assert sum(map(len, made)) == len(versions), "a number was given twice"
    return versions


def check_race(place, versions):
    """The numbers 1 to 80, each with its writer's content, also when it is not medtune that looks."""
    assert sorted(versions) == list(range(1, WRITERS * EACH + 1))
    assert [entry["version"] for entry in place.good("data", "list", "--json")] == sorted(versions)
    manifests = place.manifests()
    assert sorted(manifests) == [("race", number) for number in sorted(versions)]
    for number, path in versions.items():
        manifest = manifests["race", number]
        assert [file["path"] for file in manifest["files"]] == [path.name]
        assert place.read(f"{manifest['prefix']}/{path.name}") == path.read_bytes()
    assert len([key for key in place.sizes() if key.startswith("data/")]) == len(versions)


@pytest.mark.parametrize("kind", ["folder", "s3", "azure"])
def test_racing_publishers_get_all_numbers_once(binary, server, tmp_path, kind):
    place = Place(binary, server, "race", tmp_path)
    check_race(place, race(place, tmp_path / "files"))


def test_racing_publishers_in_bad_networks(binary, s3, azure, tmp_path):
    """On both servers at once, since most of the time is waiting for the next try."""

    def compete(server):
        folder = tmp_path / server.scheme
        folder.mkdir()
        with faulty(server, *BAD_NETWORK[server.scheme], "--seed", 7) as proxied:
            versions = race(Place(binary, proxied, "bad-race", folder), folder / "files")
            faults = counts(proxied)
        print(server.scheme, {name: faults[name] for name in ("requests", "lost_ack", "busy", "conflict")})
        assert faults["lost_ack"] > WRITERS and faults["busy"] > WRITERS
        assert faults["conflict"] or server.scheme != "s3"
        check_race(Place(binary, server, "bad-race", folder), versions)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compete, [s3, azure]))


class Readers:
    """Processes that list and verify for as long as the block lasts; `listed` are all versions that were ever seen."""

    def __init__(self, place, name, count=2):
        self.place, self.name, self.count = place, name, count
        self.listed, self.verified, self.problems, self.stop = set(), 0, [], threading.Event()

    def read(self, seed):
        rng = random.Random(seed)
        while not self.stop.is_set():
            listed = self.place.call("data", "list", "--json")
            if listed.returncode == 13 and not self.listed:
                # before the first version there is no store
                continue
            if listed.returncode != 0:
                self.problems.append(listed.stderr)
                return
            numbers = [entry["version"] for entry in json.loads(listed.stdout)]
            self.listed |= set(numbers)
            if not numbers:
                continue
            # the newest is the one that may be wrong
            number = rng.choice([numbers[-1], numbers[-1], rng.choice(numbers)])
            verified = self.place.call("data", "verify", f"{self.name}@{number}")
            self.verified += 1
            if verified.returncode != 0:
                self.problems.append(verified.stderr)

    def __enter__(self):
        self.threads = [threading.Thread(target=self.read, args=[n]) for n in range(self.count)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def publish(place, source, *tags, kill_after=None, until=None):
    """Registers the folder; whether it came to its end before it was killed: after that many seconds, or as soon as `until` says so."""
    command = [place.binary, "data", "register", "--name", "storm", source]
    for tag in tags:
        command += ["--tag", tag]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(list(map(str, command)), env=place.env, stdout=subprocess.DEVNULL, stderr=errors)
        if until:
            end = time.monotonic() + 120
            while process.poll() is None and not until():
                assert time.monotonic() < end, "what should be waited for does not come"
                time.sleep(0.001)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after or 120)
        process.kill()
        status = process.wait()
        errors.seek(0)
        assert status in ((0, -9) if kill_after or until else (0,)), errors.read()
    return status == 0


def data_of(place):
    """Keys of what lies under data."""
    return {key for key in place.sizes() if key.startswith("data/")}


def versions_of(place):
    """Folders of versions under data/storm, also of those that are not listed."""
    return place.server.folders(f"{place.prefix}/data/storm")


def named_by(manifests):
    """Keys of the files that versions consist of."""
    return {f"{m['prefix']}/{file['path']}" for m in manifests.values() for file in m["files"]}


@pytest.mark.parametrize("kind, kills, largest", [("folder", 100, 300_000), ("s3", 8, 9 << 20)])
def test_a_publisher_that_is_killed(binary, server, tmp_path, kind, kills, largest):
    """kill -9 at random moments while others read: what is listed is whole, and gc takes what was left, and nothing else."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    source = tmp_path / "source"
    for n in range(20):
        random_file(source / f"part-{n % 3}" / f"{n:02}.bin", largest if n == 7 else rng.randrange(50_000, 300_000), n)
    place = Place(binary, server, f"storm-{kind}", tmp_path, MEDTUNE_STORE_LEASE_SECONDS=LEASE)
    turn, interrupted, published, left_locked = 0, 0, True, False

    def content(number):
        (source / "number.txt").write_text(f"content {number}\n")

    with Readers(place, "storm") as readers:
        durations = []
        for number in range(3):
            content(number)
            begun = time.monotonic()
            publish(place, source)
            durations.append(time.monotonic() - begun)
        # as many as there should be, and on until a fair share was killed and one was not, whatever the clock did
        while turn < kills or (turn < 4 * kills and not kills / 3 < interrupted < turn):
            # many give up for good: nobody comes again with these tags; the others come again and wait until a lock has run out
            tags = [f"turn={turn}"] if rng.random() < 0.5 else []
            wait = 1.3 * LEASE if left_locked and not tags else 0
            if published:
                content(3 + turn)
            published = publish(place, source, *tags, kill_after=wait + rng.uniform(0.1, 1.1) * statistics.median(durations))
            left_locked = kind != "folder" and (left_locked if tags else not published)
            interrupted += not published
            turn += 1
        # the last that did not get there comes again
        publish(place, source)
        # and one is gone for good once a file of it has arrived, so that there is something to collect whatever the clock did
        for number in range(100):
            content(f"of debris {number}")
            before = versions_of(place)
            publish(place, source, f"debris={number}", until=lambda before=before: versions_of(place) - before)
            if data_of(place) - named_by(place.manifests()):
                break

    print(f"{interrupted} of {turn} interrupted, {len(readers.listed)} versions listed, {readers.verified} times verified")
    assert not readers.problems, readers.problems[:3]
    assert kills / 3 < interrupted < turn and readers.verified > kills / 10
    listed = {entry["version"] for entry in place.good("data", "list", "--json")}
    assert readers.listed <= listed
    manifests = place.manifests()
    assert {number for _, number in manifests} == listed
    named = named_by(manifests)
    assert named < data_of(place), "there is no debris: no kill came between the first file and the manifest"

    if kind != "folder":
        time.sleep(LEASE + 1)
    place.good("gc", "--older-than", "0s")
    after = set(place.sizes())
    assert data_of(place) == named
    if kind == "folder":
        # half-written small files, which go when they are a day old
        unfinished = [key for key in after if UNFINISHED.search(key)]
        for key in unfinished:
            os.utime(server.folder / place.prefix / key, (0, 0))
        place.good("gc", "--older-than", "0s")
        assert set(place.sizes()) == after - set(unfinished)
    assert place.manifests() == manifests
    for number in sorted(listed):
        place.good("data", "verify", f"storm@{number}")
    # and numbers go on
    content("after gc")
    assert place.good("data", "register", "--name", "storm", source, "--json")["version"] > max(listed)
