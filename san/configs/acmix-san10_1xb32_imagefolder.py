# Images of your own: --cfg-options data_root=FOLDER, with train/<class>/ and val/<class>/ in it.
_base_ = [
    "./_base_/acmix-san10.py",
    "../../core/configs/_base_/imagefolder_224.py",
    "../../core/configs/_base_/finetune_adamw_30e.py",
    "../../core/configs/_base_/default_runtime.py",
]

model = dict(head=dict(type="OpenLinearClsHead", num_classes=None, topk=(1,)))
