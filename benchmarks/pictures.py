"""What makes encoders of pictures faster on a processor: processor seconds with and without each, in turn, in one run.

python benchmarks/pictures.py                                          # mobilenet-v2 of ../shared, pictures of noise
python benchmarks/pictures.py --model FOLDER --rows 16 --rounds 5
python benchmarks/pictures.py --architectures                          # others of transformers, random weights

Each figure is the median over rounds of milliseconds a picture, of one thread's work if OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.convolutions import unfold_batch_norms
from fusetune.backbones.freeze import freeze
from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes.boundary import boundary_pass, frozen_layers, placeholder_inputs, run_to
from fusetune.inference.memory import retain_freed_memory

MOBILENET = Path(__file__).parents[2] / "shared" / "models" / "mobilenet-v2"
Inputs = dict[str, Tensor]


def variants(backbone: Backbone) -> dict[str, tuple[Backbone, bool]]:
    """Return encoders of the same weights and whether they compute in bf16, by what is done."""
    plain, last = copy.deepcopy(backbone), copy.deepcopy(backbone)
    for encoder in (plain, last):
        unfold_batch_norms(encoder)
    plain.channels_last, last.channels_last = False, True
    folded = copy.deepcopy(backbone)
    folded.channels_last = False
    both = copy.deepcopy(backbone)
    both.channels_last = True
    return {
        "plain": (plain, False),
        "channels-last": (last, False),
        "norms folded": (folded, False),
        "both": (both, False),
        "plain, bf16": (plain, True),
        "both, bf16": (both, True),
    }


def seconds(encoder: Backbone, inputs: Inputs, *, train: bool, bf16: bool) -> float:
    """Return the processor seconds of a pass, with its backward pass or without."""
    encoder.train(train)
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(train):
        values = encoder(**inputs).values
        if train:
            values.float().pow(2).mean().backward()
    took = time.process_time() - start
    encoder.zero_grad()
    return took


def compare(backbone: Backbone, inputs: Inputs, rounds: int) -> None:
    """Print milliseconds a picture by variant, and how many times faster than the plain one."""
    rows, tried = len(next(iter(inputs.values()))), variants(backbone)
    took: dict[tuple[str, bool], list[float]] = {(name, train): [] for name in tried for train in (True, False)}
    with retain_freed_memory():
        for number in range(rounds + 1):  # the first warms up
            for name, (encoder, bf16) in tried.items():
                for train in (True, False):
                    spent = seconds(encoder, inputs, train=train, bf16=bf16)
                    if number:
                        took[name, train].append(spent)
    middle = {key: 1000 * statistics.median(values) / rows for key, values in took.items()}
    print("| | update, ms a picture | faster | encoding, ms a picture | faster |\n|---|---|---|---|---|")
    for name in tried:
        shown = [f"{middle[name, train]:.1f} | {middle['plain', train] / middle[name, train]:.2f}" for train in (1, 0)]
        print(f"| {name} | {' | '.join(shown)} |")


def frozen(backbone: Backbone, inputs: Inputs, rounds: int) -> None:
    """Print milliseconds a picture of an update whose first K blocks are frozen and were run before."""
    rows, parts = len(next(iter(inputs.values()))), len(backbone.blocks())
    print("\n| first blocks frozen | update, ms a picture | kept, KiB a picture |\n|---|---|---|")
    for count in range(parts):
        freeze(backbone, f"bottom:{count}")
        given, kept = inputs, 0
        if layer := frozen_layers(backbone):
            backbone.eval()
            with torch.no_grad():
                backbone.start = boundary_pass(backbone, layer, inputs)
                hidden = run_to(backbone, layer, inputs)
            given, kept = {**placeholder_inputs(backbone, inputs), "boundary": hidden}, hidden[0].numel() * 4 // 1024
        with retain_freed_memory():
            spent = [seconds(backbone, given, train=True, bf16=False) for _ in range(rounds + 1)][1:]
        print(f"| {count} of {parts} | {1000 * statistics.median(spent) / rows:.1f} | {kept} |")


def architectures() -> Iterator[tuple[str, Backbone]]:
    """Yield encoders of other kinds, with random weights."""
    import transformers as tr

    configs = {
        "ResNet-18": tr.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"),
        "ResNet-50": tr.ResNetConfig(),
        "EfficientNet-B0": tr.EfficientNetConfig(
            image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280
        ),
        "MobileNetV1": tr.MobileNetV1Config(),
        "RegNet": tr.RegNetConfig(
            embedding_size=32, hidden_sizes=[48, 96, 192, 384], depths=[2, 4, 4, 2], groups_width=24
        ),
        "ConvNeXt": tr.ConvNextConfig(depths=[3, 3, 3, 3], hidden_sizes=[64, 128, 256, 512]),
    }
    processor = tr.ViTImageProcessor(size={"height": 224, "width": 224})
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            tr.AutoModel.from_config(config).save_pretrained(folder)
            processor.save_pretrained(folder)
            yield name, load_backbone(folder, "image")


def pictures(backbone: Backbone, rows: int) -> Inputs:
    """Return the tensors of pictures of noise."""
    random = np.random.default_rng(0)
    return backbone.collate_images(
        [random.integers(0, 256, (3, *backbone.image_size), dtype=np.uint8) for _ in range(rows)]
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MOBILENET, help="a folder with an encoder of pictures")
    parser.add_argument("--rows", type=int, default=8, help="pictures a pass")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured")
    parser.add_argument("--architectures", action="store_true", help="other architectures, random weights")
    asked = parser.parse_args()
    if asked.architectures:
        for name, backbone in architectures():
            print(f"\n{name}\n")
            compare(backbone, pictures(backbone, asked.rows), asked.rounds)
        return
    backbone = load_backbone(str(asked.model), "image")
    compare(backbone, pictures(backbone, asked.rows), asked.rounds)
    frozen(backbone, pictures(backbone, asked.rows), asked.rounds)


if __name__ == "__main__":
    main()
