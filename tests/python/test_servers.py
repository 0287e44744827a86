"""The test servers themselves: they keep the promises that the product's tests rest on, and the faults really happen."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, IncompleteReadError, ResponseStreamingError
from servers import azure_server, counts, faulty, s3_server, started

ONCE = {"mode": "standard", "total_max_attempts": 1}
# boto3 as it is when it does not check content itself
UNCHECKED = dict.fromkeys(["request_checksum_calculation", "response_checksum_validation"], "when_required")


def put(client, bucket, key, body, **condition):
    """Status of a PUT, as it was answered or not: 0 for a closed connection."""
    try:
        return client.put_object(Bucket=bucket, Key=key, Body=body, **condition)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
    except ConnectionClosedError:
        return 0


def race(client, bucket, key, racers=32):
    """The winners among racers that create one key with a body of their own, and what they were all answered."""
    together = threading.Barrier(racers)

    def create(n):
        together.wait()
        return put(client, bucket, key, f"racer {n}".encode(), IfNoneMatch="*")

    with ThreadPoolExecutor(racers) as pool:
        answers = list(pool.map(create, range(racers)))
    return [n for n, status in enumerate(answers) if status == 200], set(answers)


def test_creating_has_one_winner(s3):
    client = s3.client(retries=ONCE)
    for turn in range(20):
        winners, answers = race(client, s3.bucket, f"race/{turn}")
        assert len(winners) == 1 and answers <= {200, 412}, (winners, answers)
        assert s3.read(f"race/{turn}") == f"racer {winners[0]}".encode()


def test_faults_happen_and_creating_still_has_at_most_one_winner(s3):
    with faulty(s3, "--lost-ack", 0.2, "--busy", 0.1, "--conflict", 0.05, "--seed", 3) as proxied:
        client = proxied.client(retries=ONCE)
        seen = set()
        for turn in range(20):
            winners, answers = race(client, s3.bucket, f"faulty/{turn}")
            assert len(winners) <= 1
            seen |= answers
        assert seen == {0, 200, 409, 412, 503}
        counted = counts(proxied)
    requests = 20 * 32
    assert counted["requests"] == counted["methods"]["PUT"] == requests
    # the seed does not decide the counts, since which request draws next is a race: each lies within five standard deviations. A fault is drawn
    # for what no other has met
    for name, chance in (("busy", 0.1), ("conflict", 0.9 * 0.05), ("lost_ack", 0.9 * 0.95 * 0.2)):
        spread = 5 * (requests * chance * (1 - chance)) ** 0.5
        assert 0 < requests * chance - spread < counted[name] < requests * chance + spread, (name, counted)
    # what an answer was lost for is there all the same
    assert any(s3.read(f"faulty/{turn}") for turn in range(20))


def test_ranges(s3):
    client, body = s3.client(retries=ONCE), bytes(range(256)) * 100
    tag = client.put_object(Bucket=s3.bucket, Key="ranges/a b.bin", Body=body)["ETag"]

    def get(span, **condition):
        return client.get_object(Bucket=s3.bucket, Key="ranges/a b.bin", Range=f"bytes={span}", **condition)

    for span, begin, end in [("0-0", 0, 1), ("100-999", 100, 1000), ("25500-99999", 25500, 25600), ("-7", 25593, 25600), ("9-", 9, 25600)]:
        answer = get(span, IfMatch=tag)
        assert answer["Body"].read() == body[begin:end]
        assert (answer["ContentRange"], answer["ETag"]) == (f"bytes {begin}-{end - 1}/25600", tag)
    for span, condition, status in [("0-9", {"IfMatch": '"other"'}, 412), ("25600-25700", {}, 416)]:
        with pytest.raises(ClientError) as refused:
            get(span, **condition)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    with pytest.raises(ClientError):
        client.get_object(Bucket=s3.bucket, Key="ranges/none", Range="bytes=0-9")


def test_a_period_and_latency(s3):
    with faulty(s3, "--busy", 3, "--latency", 0.05) as proxied:
        client = proxied.client(retries=ONCE)
        begun = time.monotonic()
        answers = [put(client, s3.bucket, "period", b"x") for _ in range(6)]
        assert answers == [200, 200, 503] * 2 and time.monotonic() - begun > 0.3


def test_cut_connections_and_flipped_bytes(s3):
    body = bytes(range(256)) * 4096
    s3.client().put_object(Bucket=s3.bucket, Key="whole/one", Body=body)
    with faulty(s3, "--cut", 400_000) as proxied:
        client = proxied.client(retries=ONCE)
        with pytest.raises((IncompleteReadError, ResponseStreamingError)):
            client.get_object(Bucket=s3.bucket, Key="whole/one")["Body"].read()
        # up too: nothing of it arrives
        assert put(client, s3.bucket, "whole/two", body) == 0
        assert counts(proxied)["cut"] == 2 and counts(proxied)["down"] == {"whole/one": 400_000}
        assert "two" not in s3.sizes("whole")
    with faulty(s3, "--flip", "le/one@1000:2", "--flip-up", "two@5:always") as proxied:
        client = proxied.client(retries=ONCE, **UNCHECKED)

        def read(key, **range_):
            return client.get_object(Bucket=s3.bucket, Key=key, **range_)["Body"].read()

        changed = bytearray(body)
        changed[1000] ^= 0x20
        assert read("whole/one", Range="bytes=1001-2000") == body[1001:2001]
        assert read("whole/one") == changed and read("whole/one", Range="bytes=1000-1000") == changed[1000:1001]
        assert read("whole/one") == body
        for _ in range(2):
            assert put(client, s3.bucket, "whole/two", b"0123456789") == 200
            assert s3.read("whole/two") == b"01234\x156789"
        assert (counts(proxied)["flip"], counts(proxied)["flip_up"]) == (2, 2)


def test_azure_answers_signed_requests(azure):
    body = bytes(range(256)) * 100
    blob = {"x-ms-blob-type": "BlockBlob"}
    with faulty(azure) as proxied:
        for server in (azure, proxied):
            key = f"signed/{server is azure}/a file"
            assert server.request("PUT", key, headers=blob | {"if-none-match": "*"}, body=body)[0] == 201
            assert server.request("PUT", key, headers=blob | {"if-none-match": "*"}, body=b"other")[0] == 409
            assert server.read(key) == body and azure.sizes("signed")[key.removeprefix("signed/")] == len(body)
            status, _, part = server.request("GET", key, headers={"range": "bytes=256-511"})
            assert status == 206 and part == bytes(range(256))
    assert azure.request("GET", "signed/nothing")[0] == 404


def test_what_cannot_start_fails():
    with pytest.raises(AssertionError, match="did not start"), started("s3.py", "x"):
        pass


@pytest.mark.parametrize("server", [s3_server, azure_server])
def test_servers_end_with_their_input(server):
    with server() as running:
        assert running.sizes("none") == {}
    with pytest.raises(URLError):
        urlopen(running.endpoint, timeout=5)
