"""MONAI's ViT on an octree: adaptive patches of a volume."""

import numpy as np
from monai.networks.nets import ViT

import patchtree as pt

z, y, x = np.ogrid[:96, :96, :96]
volume = ((z - 40) ** 2 + (y - 50) ** 2 + (x - 30) ** 2 < 20**2).astype(np.float32)  # a ball
patches = pt.Patcher(patch_size=8, budget=250, detail="variance", ndim=3)(volume)
tokens = pt.collate([patches])

model = pt.adapt(ViT(1, (96, 96, 96), (8, 8, 8), hidden_size=96, mlp_dim=192, num_layers=3, num_heads=4).eval())
features = model(tokens)

print(f"{volume.size // 8**3} patches of 8 x 8 x 8 in all, {len(patches)} leaves; features {tuple(features.shape)}")
assert features.shape == (1, len(patches), 96)
