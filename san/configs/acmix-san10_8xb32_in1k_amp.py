# In mixed precision, which needs a GPU: bfloat16, or float16 by optim_wrapper.dtype=float16.
_base_ = "./acmix-san10_8xb32_in1k.py"

optim_wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale="dynamic")
