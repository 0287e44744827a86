"""Packages written by hand from random weights, loaded by real MLflow and compared with the independent implementation. Needs no binary."""

import io
import json
import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from checks import assert_conforms, assert_no_pickle, base64_of, mlflow_predict
from handmade import LABELS, png, runtime, tokenizer, write_package
from mlflow.exceptions import MlflowException
from PIL import Image
from reference import Reference, adapter_logits, pixels
from safetensors.torch import load_file, save_file

CHECKPOINTS = "artifacts/checkpoints"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """{name: (folder, config, state, extra)} of an embedding package and of both kinds of classifier."""
    kinds = {"embeddings": ("embeddings", None), "zero-shot": ("classification", "zero-shot"), "adapter": ("classification", "adapter")}
    made = {}
    for name, (task, classifier) in kinds.items():
        folder = tmp_path_factory.mktemp(name) / "package"
        made[name] = (folder, *write_package(folder, task, classifier))
    return made


@pytest.fixture(scope="module")
def images():
    return [png(40, 60, 1), png(91, 33, 2), png(64, 64, 3, "L"), png(30, 30, 4, "RGBA")]


def assert_same_answer(ours, theirs):
    """The same labels in the same order; scores may differ by rounding, since batches of other sizes sum in another order."""
    assert [item["label"] for item in ours] == [item["label"] for item in theirs]
    assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], abs=1e-6)


def expected_features(packages, name, images, **settings):
    folder, model_config, state, _ = packages[name]
    own = json.loads((folder / CHECKPOINTS / "medtune.json").read_text())["pixels"]
    return Reference(model_config, state).encode_image(torch.stack([pixels(data, own, **settings) for data in images]))


def model_of(packages, name):
    return runtime()._load_pyfunc(str(packages[name][0] / CHECKPOINTS), {"device": "cpu"})


@pytest.mark.parametrize("name", ["embeddings", "zero-shot", "adapter"])
def test_mlflow_accepts_the_package(packages, name):
    assert_no_pickle(packages[name][0])
    assert_conforms(packages[name][0])


def test_embeddings_through_mlflow(packages, images, tmp_path):
    folder, model_config, state, _ = packages["embeddings"]
    texts = ["Colon polyp.", None, "x-ray chest", "An endoscopy text that is far longer than the context of twenty tokens"]
    rows = [[base64_of(data), text] for data, text in zip(images, texts)] + [["", "only text"]]
    answer, stderr = mlflow_predict(tmp_path, folder, ["image", "text"], rows)
    assert "Warning" not in stderr
    assert [sorted(row) for row in answer] == [
        ["image_features", "scaling_factor", "text_features"],
        ["image_features", "scaling_factor"],
        ["image_features", "scaling_factor", "text_features"],
        ["image_features", "scaling_factor", "text_features"],
        ["scaling_factor", "text_features"],
    ]
    got = torch.tensor([row["image_features"] for row in answer[:4]])
    torch.testing.assert_close(got, expected_features(packages, "embeddings", images), rtol=0, atol=1e-5)
    given = [text for text in [*texts, "only text"] if text]
    got = torch.tensor([row["text_features"] for row in answer if "text_features" in row])
    expected = Reference(model_config, state).encode_texts(tokenizer(), given)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert all(row["scaling_factor"] == 2.75 for row in answer)
    answer, _ = mlflow_predict(tmp_path, folder, ["text"], [["only text"]], {"get_scaling_factor": False})
    assert list(answer[0]) == ["text_features"]


@pytest.mark.parametrize("name", ["zero-shot", "adapter"])
def test_classifier_through_mlflow(packages, images, tmp_path, name):
    folder, _, _, extra = packages[name]
    answer, stderr = mlflow_predict(tmp_path, folder, ["image"], [[base64_of(data)] for data in images])
    assert "Warning" not in stderr
    features = expected_features(packages, name, images)
    logits = adapter_logits(extra, features) if name == "adapter" else torch.tensor(2.75).exp() * features @ extra.T
    for row, scores in zip(answer, logits.softmax(dim=1).tolist()):
        assert [item["score"] for item in row] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        assert {item["label"]: item["score"] for item in row} == pytest.approx(dict(zip(LABELS, scores)), abs=1e-5)
    best, _ = mlflow_predict(tmp_path, folder, ["image"], [[base64_of(images[0])]], {"top_k": 1, "output_format": "json"})
    assert_same_answer(json.loads(best[0]), answer[0][:1])


def test_pixels_are_pillows(packages, images):
    settings = json.loads((packages["embeddings"][0] / CHECKPOINTS / "medtune.json").read_text())["pixels"]
    for data in images:
        for size, quality in [(64, 75), (30, 95), (100, 40)]:
            got = runtime().images.pixels(data, settings, size, quality)
            expected = pixels(data, settings, size, quality).numpy()
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected)


def test_parameters_reach_the_model(packages, images):
    model = model_of(packages, "embeddings")
    frame = pd.DataFrame({"image": images})
    params = {"image_standardization_jpeg_compression_ratio": 30, "image_standardization_image_size": 20}
    got = torch.tensor([row["image_features"] for row in model.predict(frame, params)])
    expected = expected_features(packages, "embeddings", images, size=20, quality=30)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert model.predict(frame, dict.fromkeys(params)) == model.predict(frame)


def test_every_form_of_an_image_cell(packages, images):
    model = model_of(packages, "zero-shot")
    data, text = images[0], base64_of(images[0])
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    forms = [data, bytearray(data), text, wrapped, text.encode(), np.bytes_(text.encode()), f"data:image/png;base64,{text}", f" {text}\n"]
    answers = model.predict(pd.DataFrame({"image": forms}))
    for answer in answers:
        assert_same_answer(answer, answers[0])
    for table in ([text], [data], np.array([text]), {"image": [text]}, [{"image": data}], pd.Series([text]), pd.DataFrame({"image": [text]})):
        (answer,) = model.predict(table)
        assert_same_answer(answer, answers[0])


@pytest.mark.parametrize("images_at_once", [3, 16])
def test_a_batch_equals_its_rows(packages, images_at_once):
    """More rows than a chunk, with gaps; a row's answer does not depend on its neighbours."""
    model = model_of(packages, "embeddings")
    model.images_at_once = images_at_once
    cells = [png(20, 30, seed) if seed % 5 else "" for seed in range(40)]
    texts = [f"text number {seed}" if seed % 3 or not seed % 5 else float("nan") for seed in range(40)]
    answers = model.predict(pd.DataFrame({"image": cells, "text": texts}))
    for row in (0, 3, 5, 17, 39):
        single = model.predict(pd.DataFrame({"image": [cells[row]], "text": [texts[row]]}))[0]
        assert single.keys() == answers[row].keys()
        for key, value in single.items():
            assert answers[row][key] == pytest.approx(value, abs=1e-6)


def test_precision(packages, images, tmp_path):
    """MLflow's own way to configure a model reaches the loader; in bf16 the answer is another, by no more than rounding."""
    folder, answers = packages["zero-shot"][0], {}
    for precision in ("f32", "bf16"):
        settings = {"device": "cpu", "precision": precision}
        # as many threads, since other sums round to other numbers in bf16
        extra = {"MLFLOW_PYFUNC_INFERENCE_CONFIG": json.dumps(settings), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        answer, stderr = mlflow_predict(tmp_path, folder, ["image"], [[base64_of(data)] for data in images], extra=extra)
        assert "ignored" not in stderr and "Warning" not in stderr
        model = runtime()._load_pyfunc(str(folder / CHECKPOINTS), settings)
        for ours, theirs in zip(answer, model.predict(pd.DataFrame({"image": images}))):
            assert_same_answer(ours, theirs)
        answers[precision] = [{item["label"]: item["score"] for item in row} for row in answer]
    apart = max(abs(a[label] - b[label]) for a, b in zip(answers["f32"], answers["bf16"]) for label in LABELS)
    assert 1e-6 < apart < 0.05 if runtime().onednn.has_bfloat16_products() else apart == 0


def test_configuration(packages):
    """What is absent, null or empty is the default; what is unknown is refused, with what there is."""
    folder = str(packages["zero-shot"][0] / CHECKPOINTS)
    for config in (None, {}, {"device": None, "precision": None}, {"device": "", "precision": ""}):
        model = runtime()._load_pyfunc(folder, config)
        assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert model.unicl.image_encoder.convs[0].proj.weight.dtype == torch.float32
    fp8, listed = {"precision": "fp8"}, {"precision": ["bf16"]}
    for config, message in ((fp8, "'f32' or 'bf16', not 'fp8'"), (listed, "'f32' or 'bf16', not"), ({"device": "gpu"}, "'auto', 'cpu', .* not 'gpu'")):
        with pytest.raises(ValueError, match=message):
            runtime()._load_pyfunc(folder, config)


@pytest.mark.parametrize("pays", [True, False])
def test_a_loaded_model_is_packed_where_that_pays(packages, images, monkeypatch, pays):
    monkeypatch.setattr(runtime().onednn, "_packing_pays", lambda dtype: pays)
    model = model_of(packages, "embeddings")
    layers = [layer for layer in model.unicl.modules() if isinstance(layer, runtime().onednn.Linear)]
    assert layers and all((layer.packed is not None) == pays for layer in layers)
    got = torch.tensor([row["image_features"] for row in model.predict(pd.DataFrame({"image": images}))])
    torch.testing.assert_close(got, expected_features(packages, "embeddings", images), rtol=0, atol=1e-5)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    """Small ones side by side. What counts is the largest that there is on the way to the standard size, here 32."""
    images, most, now, lock = runtime().images, [0], [0], threading.Lock()
    original = images.decode

    def decode(data):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        try:
            return original(data)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(images, "decode", decode)
    for shape, limit, side_by_side in (
        ((40, 60), 40 * 60, True),
        ((40, 60), 40 * 60 - 1, False),
        ((200, 3), 200 * 32, True),
        ((200, 3), 200 * 32 - 1, False),
        ((3, 200), 200 * 32 - 1, False),
    ):
        monkeypatch.setattr(images, "LARGE_PIXELS", limit)
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: images.standardise(png(*shape, seed), 32, 75), range(8)))
        assert (most[0] > 1) == side_by_side, most


def test_a_processor_without_bf16_computes_in_f32(packages, images, monkeypatch, caplog):
    monkeypatch.setattr(runtime().onednn, "has_bfloat16_products", lambda: False)
    frame = pd.DataFrame({"image": images})
    model = runtime()._load_pyfunc(str(packages["zero-shot"][0] / CHECKPOINTS), {"device": "cpu", "precision": "bf16"})
    assert "no products in bf16" in caplog.text
    assert model.predict(frame) == model_of(packages, "zero-shot").predict(frame)


def test_of_several_bad_rows_the_first_is_named(packages, monkeypatch):
    """Though images are decoded side by side."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    cells = [png(600, 600)] * 5 + [png(400, 400, 1)[:-30], "", "http://example.org/a.png"]
    with pytest.raises(MlflowException, match="row 5: cannot decode"):
        model_of(packages, "zero-shot").predict(pd.DataFrame({"image": cells}))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("http://example.org/a.png", "URLs are not fetched"),
        (b"http://example.org/a.png", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("not base64!", "not valid base64"),
        (base64_of(b"plain text"), "not a JPEG"),
        (b"\x00\x01\xff", "not a JPEG"),
        (png(200, 200)[:400], "cannot decode"),
        (17, "bytes or base64 text"),
        ("", "the image is empty"),
        (None, "the image is empty"),
        (float("nan"), "the image is empty"),
    ],
)
def test_refused_cells(packages, cell, message):
    model = model_of(packages, "zero-shot")
    with pytest.raises(MlflowException, match=f"row 1: .*{message}") as caught:
        model.predict(pd.DataFrame({"image": pd.Series([png(), cell], dtype=object)}))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_refused_requests(packages):
    classifier, embedder = model_of(packages, "zero-shot"), model_of(packages, "embeddings")
    frame = pd.DataFrame({"image": [png()]})
    for params in (
        {"top_k": -1},
        {"top_k": True},
        {"image_standardization_image_size": 0},
        {"image_standardization_image_size": 100_000},
        {"image_standardization_jpeg_compression_ratio": 101},
        {"image_standardization_jpeg_compression_ratio": 95.0},
        {"output_format": "xml"},
    ):
        with pytest.raises(MlflowException):
            classifier.predict(frame, params)
    for model, table in (
        (classifier, pd.DataFrame({"picture": ["x"]})),
        (embedder, pd.DataFrame({"picture": ["x"]})),
        (embedder, pd.DataFrame({"image": [""], "text": [""]})),
        (embedder, pd.DataFrame({"text": [3]})),
    ):
        with pytest.raises(MlflowException):
            model.predict(table)


def test_decompression_bomb_is_refused_by_its_header():
    def chunk(body):
        return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    side = (20_000).to_bytes(4, "big")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + side + side + b"\x08\x00\x00\x00\x00") + chunk(b"IDAT" + zlib.compress(b"\x00" * 100))
    with pytest.raises(runtime().images.ImageError, match="400000000 pixels"):
        runtime().images.decode(bomb)


def test_a_very_long_side_is_refused():
    """Resizing works one axis at a time: of a line of pixels, the first pass would make gigabytes."""
    line = io.BytesIO()
    Image.new("L", (1, 70_000)).save(line, "PNG")
    with pytest.raises(runtime().images.ImageError, match="70000"):
        runtime().images.decode(line.getvalue())


def test_decoding_of_unusual_images():
    images = runtime().images

    def encoded(image, format, **options):
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    # 16-bit grey becomes 8-bit by rounding v / 257.
    values = np.array([[0, 128, 129, 257, 1000, 65535]], dtype=np.uint16)
    grey = np.asarray(images.decode(encoded(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(grey, np.repeat(((values.astype(int) + 128) // 257)[..., None], 3, axis=2))
    # The orientation in EXIF is applied.
    corner = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = images.decode(encoded(corner, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(corner), -1))
    # Alpha is dropped, a palette is applied, one bit is black and white.
    rgba = Image.fromarray(np.array([[[10, 20, 30, 0]]], dtype=np.uint8))
    assert images.decode(encoded(rgba, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    palette = corner.quantize(8)
    np.testing.assert_array_equal(np.asarray(images.decode(encoded(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    assert images.decode(encoded(Image.new("1", (2, 2), 1), "BMP")).getpixel((1, 1)) == (255, 255, 255)
    for format in ("TIFF", "BMP", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        np.testing.assert_array_equal(np.asarray(images.decode(encoded(corner, format, **options))), np.asarray(corner))
    # CMYK is converted as Pillow does it, of JPEG and of TIFF; for other modes see test_image_modes
    cmyk = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8), "CMYK"), "JPEG", exif=exif)
    turned = np.rot90(np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")), -1)
    np.testing.assert_array_equal(np.asarray(images.decode(cmyk)), turned)
    inks = corner.convert("CMYK")
    np.testing.assert_array_equal(np.asarray(images.decode(encoded(inks, "TIFF"))), np.asarray(inks.convert("RGB")))
    with pytest.raises(images.ImageError, match="LAB"):
        images.decode(encoded(Image.merge("LAB", corner.split()), "TIFF"))
    with pytest.raises(images.ImageError):
        images.image_bytes(encoded(corner, "GIF"))


def png16(values, colour_type):
    """A PNG of 16 bits a channel, which Pillow cannot write: `values` is uint16 [H, W, channels], colour type 2 is RGB, 4 grey with alpha."""

    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    height, width = values.shape[:2]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour_type, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_gives_its_high_byte():
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    got = np.asarray(runtime().images.decode(png16(values, 2)))
    np.testing.assert_array_equal(got, values >> 8)
    got = np.asarray(runtime().images.decode(png16(values[..., :2], 4)))
    np.testing.assert_array_equal(got, np.repeat(values[..., :1] >> 8, 3, axis=2))


@pytest.mark.parametrize(("height", "width"), [(400, 30), (30, 400), (200, 100), (64, 90), (20, 20)])
def test_the_horizontal_pass_comes_first(height, width):
    """Against resizing every row, then every column, as an image of its own: no version of Pillow can choose an order there."""
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def rows(array, side):
        return np.concatenate([np.asarray(Image.fromarray(row[None]).resize((side, 1), Image.BICUBIC)) for row in array])

    expected = rows(rows(values, 64).swapaxes(0, 1), 48).swapaxes(0, 1)
    got = np.asarray(runtime().images._resize(Image.fromarray(values), 64, 48))
    np.testing.assert_array_equal(got, expected)


def test_safetensors_reader(tmp_path):
    read = runtime().weights.read_safetensors
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "brain": torch.randn(2, 2, generator=generator).bfloat16(),
        "scalar": torch.tensor(1.5),
    }
    path = tmp_path / "w.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    got, expected = read(path), load_file(path)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], tensor.float())
    whole = path.read_bytes()
    damage = {
        "short": whole[:-1],
        "tiny": b"12345",
        "header": (1 << 40).to_bytes(8, "little") + whole[8:],
        "json": whole[:8] + b"[" + whole[9:],
        "pickle": b"\x80\x04" + b"." * 50,
    }
    for name, data in damage.items():
        bad = tmp_path / name
        bad.write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read(bad)
    save_file({"ids": torch.tensor([1, 2])}, path)
    with pytest.raises(ValueError, match="ids: dtype I64"):
        read(path)


def test_paths_stay_inside(packages, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packages["embeddings"][0] / CHECKPOINTS, copy)
    settings = json.loads((copy / "medtune.json").read_text())
    (copy / "medtune.json").write_text(json.dumps(settings | {"weights": "../../other.pt"}))
    with pytest.raises(ValueError, match="outside the package"):
        runtime()._load_pyfunc(str(copy))
    (copy / "medtune.json").write_text(json.dumps(settings | {"format_version": 2}))
    with pytest.raises(ValueError, match="format_version 2"):
        runtime()._load_pyfunc(str(copy))
