_base_ = "mmseg::_base_/default_runtime.py"

visualizer = dict(vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
