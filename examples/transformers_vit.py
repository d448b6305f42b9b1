"""A transformer of the Hugging Face library on adaptive patches of two images in one batch."""

import skimage.data
from transformers import Dinov2Config, Dinov2Model

import patchtree as pt

patcher = pt.Patcher(patch_size=14, budget=250, detail="residual")
tokens = pt.collate([patcher(skimage.data.immunohistochemistry()), patcher(skimage.data.coffee()[:200, :300])])

config = Dinov2Config(hidden_size=192, num_attention_heads=3, num_hidden_layers=4)
model = pt.adapt(Dinov2Model(config).eval())  # Dinov2Model.from_pretrained(...) with a network
encoded = model.encode(tokens)

for own, pooled in zip(pt.unpad(encoded.tokens, tokens), encoded.pooled, strict=True):
    print(tuple(own.shape), tuple(pooled.shape))
