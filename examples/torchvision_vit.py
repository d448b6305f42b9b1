"""torchvision's ViT on adaptive patches; its classifier on the pooled output, as ever."""

import skimage.data
from torchvision.models import vit_b_16

import patchtree as pt

image = skimage.data.coffee()
tokens = pt.collate([pt.Patcher(patch_size=16, budget=196)(image)])

vit = vit_b_16(num_classes=10).eval()
encoded = pt.adapt(vit).encode(tokens)
classes = vit.heads(encoded.pooled)

print(tuple(encoded.tokens.shape), "->", tuple(classes.shape))
assert classes.shape == (1, 10)
