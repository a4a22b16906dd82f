# The 1,797 digits that scikit-learn ships, 8×8, enlarged to 32×32; a fifth is held out.
_base_ = "./default_runtime.py"

data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False)

train_pipeline = [
    dict(type="Resize", scale=(32, 32), interpolation="bicubic"),
    dict(type="RandomCrop", crop_size=32, padding=3),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="Resize", scale=(32, 32), interpolation="bicubic"),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type="Digits", split="train", pipeline=train_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=120,
    num_workers=0,
    dataset=dict(type="Digits", split="test", pipeline=test_pipeline),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
max_epochs = 15
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=2,
        end=max_epochs,
        T_max=max_epochs - 2,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=10))
randomness = dict(seed=0)
