"""A timm transformer on adaptive patches: features of each leaf, painted as a picture."""

import numpy as np
import skimage.data
import timm

import patchtree as pt

image = skimage.data.retina()  # (1411, 1411, 3)
patches = pt.Patcher(patch_size=16, budget=512, detail="residual")(image)
tokens = pt.collate([patches], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

model = pt.adapt(timm.create_model("vit_small_patch16_224").eval())  # pretrained=True with a network
features = model(tokens)

print(f"{image.shape[1]} x {image.shape[0]} pixels, {len(patches)} tokens of {features.shape[-1]} features")
painted = patches.tree.paint(features[0, :, :3].detach().numpy(), smooth=True)
assert painted.shape == image.shape
assert np.isfinite(painted).all()
