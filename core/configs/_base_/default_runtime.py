_base_ = "mmpretrain::_base_/default_runtime.py"

default_hooks = dict(
    checkpoint=dict(save_best="accuracy/top1", rule="greater", max_keep_ckpts=3),
)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
