"""Bridges to other libraries, each imported on demand and never by `import replknet_ext`.

`timm`, `hub`, `onnx`, `export` and `openmmlab`: see docs/integrations.md; `depthwise_conv2d_implicit_gemm`: see
docs/accelerate-other-models.md.
"""
