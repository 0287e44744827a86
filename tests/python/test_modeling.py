"""The runtime's networks against the independent implementation, on random weights. Needs no binary."""

import pytest
import torch
from handmade import FOUR_STAGES, config, random_state, random_tensors, runtime
from reference import Reference, adapter_logits

modeling, onednn = runtime().modeling, runtime().onednn
CPU = torch.device("cpu")

CASES = {
    "two stages": {},
    "one stage": {
        "PATCH_SIZE": [7],
        "PATCH_STRIDE": [4],
        "PATCH_PADDING": [3],
        "PATCH_PRENORM": [False],
        "DIM_EMBED": [24],
        "NUM_HEADS": [3],
        "NUM_GROUPS": [3],
        "DEPTHS": [2],
    },
    "four stages as in the base model": FOUR_STAGES,
    "small patches, groups unlike heads": {"PATCH_SIZE": [3, 2], "PATCH_STRIDE": [2, 2], "PATCH_PADDING": [1, 0], "NUM_GROUPS": [4, 2]},
    "causal text": {"AUTOGRESSIVE": True},
}


@pytest.mark.parametrize("size", [(32, 32), (45, 37), (96, 64), (8, 100)])
@pytest.mark.parametrize("case", CASES)
def test_image_features(case, size):
    model_config = config(**CASES[case])
    state = random_state(model_config, vocabulary=50)
    model = modeling.load_unicl(model_config, dict(state), CPU)
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    ours, theirs = model.encode_image(pixels), Reference(model_config, state).encode_image(pixels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # The comparison means something only if images differ by much more than the tolerance.
    assert (ours[0] - ours[1]).abs().max() > 1e-2


@pytest.fixture(params=["torch", "oneDNN"])
def products(request):
    """Packs an image encoder for the products of `param`, whichever of them is the faster one here."""

    def pack(encoder):
        for layer in encoder.modules():
            if request.param == "oneDNN" and isinstance(layer, onednn.Linear):
                layer.pack()

    return pack


@pytest.mark.parametrize("attention", ["plain products", "torch's own"])
@pytest.mark.parametrize("size", [(32, 32), (45, 37), (8, 100)])
def test_ways_to_compute(products, attention, size, monkeypatch):
    """Each of them against the independent implementation: f32 to 1e-5, bf16, where it is computed in, by the direction of the vectors."""
    if attention == "torch's own":
        monkeypatch.setattr(onednn, "_KEPT_BYTES", 0)
    model_config = config(**FOUR_STAGES)
    state = random_state(model_config, vocabulary=50)
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = Reference(model_config, state).encode_image(pixels)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    for dtype in [torch.float32, *([torch.bfloat16] if onednn.has_bfloat16_products() else [])]:
        model = modeling.load_unicl(model_config, dict(state), CPU)
        model.image_encoder.compute_in(dtype)
        products(model.image_encoder)
        with torch.inference_mode():
            got = model.encode_image(pixels)
        assert got.dtype == torch.float32
        if dtype == torch.float32:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        else:
            assert 1e-5 < (got - expected).abs().max(), "not in bf16"
            assert (got * expected).sum(dim=1).min() > 0.999


def is_packed(encoder):
    """Whether all layers are; they are all alike."""
    [answer] = {layer.packed is not None and layer.weight is None for layer in encoder.modules() if isinstance(layer, onednn.Linear)}
    return answer


@pytest.fixture
def as_processor(monkeypatch):
    """Lets the runtime see a processor with these entries in /proc/cpuinfo; what it found out of another is forgotten, before and after."""

    def see(**processor):
        onednn._packing_pays.cache_clear()
        monkeypatch.setattr(onednn, "_processor", lambda: processor)

    yield see
    monkeypatch.undo()
    onednn._packing_pays.cache_clear()


@pytest.mark.parametrize(("vendor", "f32", "bf16"), [("AuthenticAMD", True, True), ("GenuineIntel", False, True), (None, False, False)])
def test_who_packs(as_processor, monkeypatch, vendor, f32, bf16):
    """On Intel's processors libtorch's products by MKL are the faster ones in f32; others than x86 were not looked at."""
    as_processor(**({"vendor_id": vendor} if vendor else {}))
    encoder = modeling.DaViT(config()["IMAGE_ENCODER"]["SPEC"])
    onednn.pack(encoder)
    assert is_packed(encoder) == f32
    monkeypatch.setattr(onednn, "_packed_linear_works", lambda dtype: True)
    onednn._packing_pays.cache_clear()
    assert (onednn._packing_pays(torch.float32), onednn._packing_pays(torch.bfloat16)) == (f32, bf16)


def test_who_has_products_in_bf16(as_processor):
    for flags, answer in (("sse4_2 avx512f avx512_bf16", True), ("avx512f avx512bw avx512_vnni", False), ("", False)):
        as_processor(flags=flags)
        assert onednn.has_bfloat16_products() == answer
    as_processor()
    assert not onednn.has_bfloat16_products()


def test_operations_that_are_gone_or_changed_are_not_used(as_processor, monkeypatch):
    """They are none of torch's public ones; what is packed is tried first."""
    as_processor(vendor_id="AuthenticAMD")
    assert onednn._packed_linear_works(torch.float32)
    original = torch.ops.mkldnn._linear_pointwise

    class Rounded:
        """Inputs in bf16."""

        def __call__(self, x, *rest):
            return original(x.bfloat16().float(), *rest)

        def binary(self, x, *rest):
            return original.binary(x.bfloat16().float(), *rest)

    class OtherGelu:
        binary = original.binary

        def __call__(self, x, weight, bias, kind, scalars, algorithm):
            return original(x, weight, bias, kind, scalars, "tanh" if kind == "gelu" else algorithm)

    class OtherSum:
        def __call__(self, *arguments):
            return original(*arguments)

        def binary(self, x, residual, *rest):
            return original.binary(x, 2 * residual, *rest)

    class OtherArguments:
        def __call__(self, x, weight):
            raise AssertionError

    for changed in (Rounded(), OtherGelu(), OtherSum(), OtherArguments()):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", changed)
        assert not onednn._packed_linear_works(torch.float32), type(changed).__name__
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    encoder = modeling.DaViT(config()["IMAGE_ENCODER"]["SPEC"])
    onednn.pack(encoder)
    assert not is_packed(encoder)


def test_images_at_once():
    """The hidden tokens of the first stage, [tokens, 4 x channels] of an image, stay below 32 MiB, at which malloc no longer keeps them."""
    spec = {"PATCH_STRIDE": [4, 2], "DIM_EMBED": [96, 192]}
    assert onednn.images_at_once(spec, 224, 224, 4) == 32 * 2**20 // (56 * 56 * 4 * 96 * 4) == 6
    assert onednn.images_at_once(spec, 224, 224, 2) == 13
    assert onednn.images_at_once(spec, 222, 221, 4) == 6, "a part of a patch is a token"
    assert onednn.images_at_once(spec | {"DIM_EMBED": [128, 256]}, 256, 256, 4) == 3, "four are 32 MiB"
    assert onednn.images_at_once(spec | {"DIM_EMBED": [256, 512]}, 480, 480, 4) == 1


@pytest.mark.parametrize("case", ["two stages", "causal text"])
def test_text_features(case):
    model_config = config(**CASES[case])
    state = random_state(model_config, vocabulary=50)
    model = modeling.load_unicl(model_config, dict(state), CPU)
    ids = torch.tensor([[48, 3, 4, 49, 49, 49], [48, 7, 49, 49, 49, 49], [48, 1, 2, 3, 4, 49]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1] * 6])
    reference = Reference(model_config, state)
    ours = model.encode_text(ids, mask)
    torch.testing.assert_close(ours, reference.encode_text(ids, mask), rtol=0, atol=1e-5)
    # Padding of any length changes nothing.
    padded = torch.nn.functional.pad(ids, (0, 14), value=49), torch.nn.functional.pad(mask, (0, 14))
    torch.testing.assert_close(ours, reference.encode_text(*padded), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours, model.encode_text(*padded), rtol=0, atol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 1e-2


def test_adapter():
    settings = {"input_channels": 24, "hidden_dimensions": 40, "classes": 7}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in modeling.Adapter(settings).state_dict().items()}
    assert set(shapes) == {
        f"{layer}.{part}"
        for layer in ("vision_embd.0", "vision_embd.2", "vision_embd.3", "retrieval_conv.0", "retrieval_conv.2", "prediction_head.0")
        for part in ("weight", "bias")
    }
    state = random_tensors(shapes, seed=3)
    features = torch.randn(5, 24, generator=torch.Generator().manual_seed(4))
    model = modeling.load(lambda: modeling.Adapter(settings), dict(state), CPU)
    torch.testing.assert_close(model(features), adapter_logits(state, features), rtol=0, atol=1e-5)


def test_parameter_names_of_the_real_size():
    """601 tensors and 616.0M parameters, as the published checkpoint has."""
    model_config = {
        "IMAGE_ENCODER": {"SPEC": CASES["four stages as in the base model"] | {
            "DIM_EMBED": [256, 512, 1024, 2048], "NUM_HEADS": [8, 16, 32, 64], "NUM_GROUPS": [8, 16, 32, 64],
            "DEPTHS": [1, 1, 9, 1], "WINDOW_SIZE": 12}},
        "LANG_ENCODER": {"CONTEXT_LENGTH": 77, "WIDTH": 1024, "HEADS": 16, "LAYERS": 16},
        "UNICL_MODEL": {"DIM_PROJECTION": 1024},
    }
    with torch.device("meta"):
        state = modeling.UniCL(model_config, 49408).state_dict()
    assert len(state) == 601
    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6, 1) == 616.0
    for name in (
        "image_encoder.convs.3.norm.weight",
        "image_encoder.blocks.2.8.spatial_block.conv1.fn.dw.weight",
        "image_encoder.blocks.2.8.spatial_block.window_attn.norm.bias",
        "image_encoder.blocks.2.8.channel_block.channel_attn.fn.qkv.bias",
        "image_encoder.blocks.2.8.channel_block.ffn.fn.net.fc2.weight",
        "image_encoder.norms.weight",
        "lang_encoder.positional_embedding",
        "lang_encoder.resblocks.15.attn.in_proj_weight",
        "lang_encoder.resblocks.15.attn.out_proj.weight",
        "lang_encoder.resblocks.15.mlp.c_fc.weight",
        "lang_encoder.ln_final.bias",
        "image_projection",
        "lang_projection",
        "logit_scale",
    ):
        assert name in state


def test_strict():
    model_config = config()
    state = random_state(model_config, vocabulary=50)
    for wrong in (
        {k: v for k, v in state.items() if k != "image_encoder.norms.bias"},
        state | {"image_encoder.extra": torch.zeros(1)},
        state | {"image_projection": torch.zeros(5, 5)},
    ):
        with pytest.raises(RuntimeError):
            modeling.load_unicl(model_config, dict(wrong), CPU)
