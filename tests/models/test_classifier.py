from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from transformers import ViTConfig, ViTModel

import patchtree as pt
from patchtree.errors import InputError
from patchtree.models.choose import build
from patchtree.models.mesh import MeshEncoder
from patchtree.models.tuning import stages, trial_tokens


def tokens(patch_size: int = 16, budgets: tuple[int, ...] = (40, 16), channels: int = 3) -> pt.Tokens:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (160, 128, channels), np.uint8) for _ in budgets]
    return pt.collate([pt.Patcher(patch_size, budget)(image) for image, budget in zip(images, budgets, strict=True)])


def test_the_pooled_output_is_what_is_classified() -> None:
    net = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    model = pt.Classifier(pt.adapt(net), 3).eval()
    model.head.classify.load_state_dict(net.head.state_dict())  # type: ignore[union-attr]
    image = np.random.default_rng(0).random((64, 64, 3), np.float32)
    uniform = pt.collate([pt.Patches(pt.cut(image, tree := pt.Tree.uniform((64, 64), 16)), tree)])
    with torch.inference_mode():
        theirs = net(torch.from_numpy(image).movedim(-1, 0)[None])
        torch.testing.assert_close(model(uniform), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "pools"),
    [
        ("patchtree:tiny", False),
        ("timm:test_vit", True),
        ("timm:test_vit2", True),  # averages its tokens
        ("timm:test_vit3", True),  # attention pooling
        pytest.param("monai:vit", False, marks=pytest.mark.slow),
        pytest.param("torchvision:vit_b_16", True, marks=pytest.mark.slow),
    ],
)
def test_padding_and_order_make_no_difference(name: str, pools: bool) -> None:
    torch.manual_seed(0)
    model = pt.build_classifier(name, labels=3).eval()
    assert isinstance(model.head.norm, torch.nn.Identity) == pools  # type: ignore[union-attr]
    torch.nn.init.normal_(model.head.classify.weight)  # type: ignore[union-attr,arg-type]
    both = tokens()
    with torch.inference_mode():
        found = model(both)
        assert found.shape == (2, 3)
        torch.testing.assert_close(found[1:], model(tokens(budgets=(16, 16)))[1:], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found[0], found[1])


@pytest.mark.filterwarnings("ignore:the model's patches are 16")
def test_patches_of_another_size_are_resized_or_refused() -> None:
    assert pt.build_classifier("timm:test_vit", labels=2)(tokens(8)).shape == (2, 2)
    with pytest.raises(InputError, match="patches of 8 x 8 pixels, the model was made for 3 and 16 x 16"):
        pt.build_classifier("patchtree:tiny", labels=2)(tokens(8))
    with pytest.raises(InputError, match="tokens have 1 channels"):
        pt.build_classifier("timm:test_vit", labels=2)(tokens(channels=1))


def test_what_pools_has_the_last_depth() -> None:
    encoder = pt.adapt(timm.create_model("test_vit3"))
    without, whole = (stages(encoder, trial_tokens(3, 16), pooled=pooled) for pooled in (False, True))
    assert {name.split(".")[1] for name in whole.keys() - without.keys()} <= {"attn_pool", "fc_norm"}
    assert whole["model.attn_pool.latent"] == encoder.depth + 1
    assert stages(MeshEncoder("tiny"), trial_tokens(3, 16), pooled=True)


def test_models_of_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="gives every pixel's classes, not the image's"):
        pt.build_classifier("monai:unet", labels=2)


def test_a_pooler_that_the_weights_lack_begins_anew(tmp_path: Path) -> None:
    small = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(small, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"lacks pooler.dense.bias and 1 more, which pools tokens and begins anew"):
        built = build(f"hf:{tmp_path}", 2, classify=True)
    assert built.depths["model.pooler.dense.weight"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(f"hf:{tmp_path}", 2)
    torch.save(ViTModel(small, add_pooling_layer=False).state_dict(), tmp_path / "vit.pt")
    with pytest.warns(UserWarning, match=r"vit.pt: lacks pooler.dense.bias"):
        build(f"hf:{tmp_path}", 2, weights=tmp_path / "vit.pt", classify=True)
