"""A large folder to and from a store, on a bad connection; and how fast on a good one. See scripts/large-transfer."""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))
from harness import sha256  # noqa: E402
from large import Done, Medtune, working_folder  # noqa: E402
from measure import require  # noqa: E402
from servers import cloud_free, counts, faulty, s3_server  # noqa: E402

CUT = 50_000_000
PIECE = 8 << 20
ROUNDS = 3
# shares of the whole; as in a package, most of it is in one file
FILES = {"data/model/weights.safetensors": 0.6, "data/model/text.safetensors": 0.3, "MLmodel": 0}
SMALL = 20


def write_source(folder, size):
    """A folder that stands for a package; nothing in it can be compressed."""
    rest = size * (1 - sum(FILES.values())) / SMALL
    sizes = {name: max(int(size * share), 900) for name, share in FILES.items()} | {f"parts/{n:02}.bin": int(rest) for n in range(SMALL)}
    for name, left in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while left:
                left -= file.write(os.urandom(min(left, PIECE)))


def hashes(folder):
    """SHA-256 by path of every file."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def stored_hashes(server, prefix):
    """The same of what is in the bucket, read in ranges."""
    client, found = server.client(), {}
    for name, size in server.sizes(prefix).items():
        digest = hashlib.sha256()
        for start in range(0, size, PIECE):
            part = client.get_object(Bucket=server.bucket, Key=f"{prefix}/{name}", Range=f"bytes={start}-{start + PIECE - 1}")
            digest.update(part["Body"].read())
        found[name] = digest.hexdigest()
    return found


class Transfers(Medtune):
    """medtune with a store of one large dataset."""

    def push(self, server, prefix, source, **extra):
        return self.run(server, prefix, "data", "register", "--name", "large", source, **extra)

    def pull(self, server, prefix, to):
        return self.run(server, prefix, "data", "pull", "large@1", to)


def bad_day(medtune, server, folder, options):
    """Through cuts and flips there and back."""
    source, target = folder / "source", folder / "pulled"
    size = int(options.size * 1e9)
    write_source(source, size)
    expected = hashes(source)
    # in two parts: one whose connection is cut afterwards is sent again as it was
    with faulty(server, "--cut", CUT, "--flip-up", "weights.safetensors@1000000:2") as proxied:
        push = medtune.push(proxied, "bad", source)
        counted = counts(proxied)
        report("push", push, size, counted, "flip_up")
        require(counted["flip_up"] == 2 and counted["cut"] > size // CUT, "the connection was not bad")
    require(stored_hashes(server, "bad/data/large/1") == expected, "what is in the bucket is not what was pushed")
    require("sending again" in push.said, "nothing was said of the flipped byte")
    with faulty(server, "--cut", CUT, "--flip", f"weights.safetensors@{size // 2}:1") as proxied:
        pull = medtune.pull(proxied, "bad", target)
        counted = counts(proxied)
        report("pull", pull, size, counted, "flip")
        require(counted["flip"] == 1 and counted["cut"] > size // CUT, "the connection was not bad")
    require(hashes(target) == expected, "what was pulled is not what was pushed")
    require("fetching it again" in pull.said, "nothing was said of the flipped byte")
    peak = max(push.peak, pull.peak)
    require(peak < options.limit, f"{peak:.0f} MB of memory are more than {options.limit}")
    clear(server, "bad")
    shutil.rmtree(source)
    shutil.rmtree(target)


def report(name, done, size, counted, flip):
    moved = sum(counted["up"].values()) + sum(counted["down"].values())
    print(
        f"{name}: {size / 1e9:.1f} GB in {done.seconds:.0f} s, {counted['cut']} cuts, flipped bytes: {counted[flip]}, "
        f"{moved / 1e9:.2f} GB moved in all, most memory {done.peak:.0f} MB",
        flush=True,
    )


def clear(server, prefix):
    client = server.client()
    for name in server.sizes(prefix):
        client.delete_object(Bucket=server.bucket, Key=f"{prefix}/{name}")


def speeds(medtune, server, folder, options):
    """The same on a good connection beside other programs; the best of several turns."""
    source, size = folder / "source", int(options.bench_size * 1e9)
    write_source(source, size)
    aws_env = cloud_free(os.environ) | server.settings() | {"AWS_EC2_METADATA_DISABLED": "true"}
    aws = [Path(sys.executable).with_name("aws"), "s3", "cp", "--recursive", "--only-show-errors"]
    bucket = f"s3://{server.bucket}/peer"
    target = folder / "target"
    copy = 'cp -r "$1" "$2" && find "$2" -type f -exec sync {} +'
    hashed = f'{copy} && find "$2" -type f -exec sha256sum {{}} +'

    def shell(script):
        return Done(["sh", "-c", script, "sh", source, target], os.environ, folder / "log")

    programs = {
        ("folder, write", "cp, synced"): lambda: shell(copy),
        ("folder, write", "cp, synced, sha256sum"): lambda: shell(hashed),
        ("folder, write", "medtune"): lambda: medtune.push(None, "store", source),
        ("folder, read", "medtune"): lambda: medtune.pull(None, "store", target),
        ("S3, write", "aws s3 cp"): lambda: Done([*aws, source, bucket], aws_env, folder / "log"),
        ("S3, write", "medtune, not read back"): lambda: medtune.push(server, "one", source, MEDTUNE_STORE_VERIFY_UPLOADS="false"),
        ("S3, write", "medtune, read back"): lambda: medtune.push(server, "two", source),
        ("S3, read", "aws s3 cp"): lambda: Done([*aws, bucket, target], aws_env, folder / "log"),
        ("S3, read", "medtune"): lambda: medtune.pull(server, "two", target),
    }
    best = {}
    for _ in range(ROUNDS):
        for name, run in programs.items():
            done = run()
            shutil.rmtree(target, ignore_errors=True)
            if name not in best or done.seconds < best[name].seconds:
                best[name] = done
        shutil.rmtree(folder / "store")
        for prefix in ("peer", "one", "two"):
            clear(server, prefix)
    peers = {"folder, write": "cp, synced", "folder, read": "cp, synced", "S3, write": "aws s3 cp", "S3, read": "aws s3 cp"}
    print(f"\n{size / 1e9:.1f} GB, best of {ROUNDS} turns")
    for (kind, program), done in best.items():
        peer = best.get((kind, peers[kind])) or best["folder, write", peers[kind]]
        ratio = f"{peer.seconds / done.seconds:.2f} x {peers[kind]}" if program.startswith("medtune") else ""
        print(f"{kind:<15} {program:<24} {size / 1e6 / done.seconds:7.0f} MB/s  {done.peak:5.0f} MB of memory  {ratio}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--medtune", required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "large-transfer")
    parser.add_argument("--size", type=float, default=4.0, help="10^9 bytes, of the bad connection")
    parser.add_argument("--bench-size", type=float, default=1.0, help="10^9 bytes, of the good one")
    parser.add_argument("--limit", type=float, default=200.0, help="most memory, 10^6 bytes")
    options = parser.parse_args()
    with working_folder(options.folder) as folder:
        medtune = Transfers(options.medtune, folder)
        with s3_server() as server:
            bad_day(medtune, server, folder, options)
            speeds(medtune, server, folder, options)
        print("PASSED: large transfer")


if __name__ == "__main__":
    main()
