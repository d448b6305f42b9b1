"""Rotary positions: timm's DINOv3, evaluated at the leaves' true centres; several depths for a dense head."""

import skimage.data
import timm

import patchtree as pt

image = skimage.data.immunohistochemistry()
tokens = pt.collate([pt.Patcher(patch_size=16, budget=300, detail="residual")(image)])

model = pt.adapt(timm.create_model("vit_small_patch16_dinov3").eval())
encoded = model.encode(tokens, depths=(2, 5, 8, 11))

print("tokens", tuple(encoded.tokens.shape), "and after", len(encoded.depths), "blocks", tuple(encoded.depths[0].shape))
assert encoded.pooled is not None
