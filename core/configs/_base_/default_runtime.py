_base_ = "mmpretrain::_base_/default_runtime.py"

default_hooks = dict(
    checkpoint=dict(save_best="accuracy/top1", rule="greater", max_keep_ckpts=3),
    visualization=dict(type="PicturesHook"),
)
# Anew, as MMPretrain's browse_dataset makes a visualizer of all entries but the type.
visualizer = dict(
    _delete_=True,
    type="mmpretrain.UniversalVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
