"""Known attention modules, ``(channels, **options)``: any (B, C, H, W) in, the same shape out.

They go into a network by name, see ``cv_attention.insertion``. Squeeze-excitation, ECA and CBAM are
in ``cv_core.nn.gates``, the non-local block in ``cv_core.nn.attention``.
"""
