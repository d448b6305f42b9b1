"""The other door: a network of images, here a U-Net, labels the leaves; the prediction has the image's size."""

import skimage.data
from monai.networks.nets import UNet

import patchtree as pt

image = skimage.data.retina()
patches = pt.Patcher(patch_size=16, budget=1024, detail="residual")(image)
tokens = pt.collate([patches])

model = pt.through_mosaic(UNet(2, 3, 4, channels=(8, 16, 32), strides=(2, 2)).eval())
logits = model(tokens)  # (1, N, 16, 16, 4)
ids = patches.tree.paint(logits[0].argmax(-1).numpy())

print(f"mosaic {tuple(pt.mosaic(tokens).shape)} for an image of {image.shape[:2]}; prediction {ids.shape}")
assert ids.shape == image.shape[:2]
