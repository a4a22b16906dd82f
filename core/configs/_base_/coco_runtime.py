_base_ = "mmdet::_base_/default_runtime.py"

default_hooks = dict(
    checkpoint=dict(save_best="coco/bbox_mAP", rule="greater", max_keep_ckpts=3),
)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
