model = dict(
    type="ImageClassifier",
    backbone=dict(type="ACmixResNet", depth=50),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        init_cfg=None,  # torch's own, as in the original
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        topk=(1, 5),
    ),
)
custom_imports = dict(imports=["acmix_resnet"])
