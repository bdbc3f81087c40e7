"""An estimate, not a measurement, of the report's real training on larger machines than this one.

ResNet-36 trains on about 583,000 images (0.7 of 832,5xx) of 224 px, on A100s. Operations and
parameters are counted, a core's decoding rate is measured; the rest is from data sheets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.bench import training_flops
from common.networks.resnet36 import ResNet36
from common.networks.summary import count_parameters, without_weights
from common.reporting.tables import table

GPUS = (1, 2, 8, 64)
COUNTED_IMAGES = 4  # in the step whose operations are counted


@dataclass(frozen=True)
class Job:
    """The training and its machines; rates are per second, sizes in bytes.

    `share_of_peak` is what such convolutions reach on a GPU in bf16. Links are NVLink in a node and
    200 Gbit/s between nodes. Each node reads the packed cache from its own disk; the cached images
    are squares with sides of 256 px.
    """

    images: int = 583_000
    batch_a_gpu: int = 128
    flops_an_image: float = 0
    parameters: int = 0
    gpu_peak: float = 312e12
    share_of_peak: float = 0.4
    nvlink: float = 300e9
    network: float = 25e9
    disk: float = 3e9
    gpus_a_node: int = 8
    cores_a_gpu: int = 8
    decoded_a_core: float = 0
    image_bytes: int = 256 * 256 * 3

    def row(self, gpus: int) -> dict:
        """Seconds of each part of a step; the parts overlap, so the longest is the bottleneck.

        Keys: gpus; compute; all_reduce (DistributedDataParallel's sum of fp32 gradients around a
        ring: Patarasuk & Yuan 2009); reading (of packed images); bottleneck; data_parallel (the
        first GPU sends the weights to all others and receives their gradients; None for several
        nodes); epoch_minutes; packing_minutes (needed once).
        """
        in_node, gradients = gpus <= self.gpus_a_node, 4 * self.parameters
        link = self.nvlink if in_node else self.network
        batch_bytes = min(gpus, self.gpus_a_node) * self.batch_a_gpu * self.image_bytes
        flops = self.batch_a_gpu * self.flops_an_image
        parts = {
            "compute": flops / (self.gpu_peak * self.share_of_peak),
            "all_reduce": 2 * (gpus - 1) / gpus * gradients / link,
            "reading": batch_bytes / self.disk,
        }
        bottleneck = max(parts, key=parts.__getitem__)
        steps = self.images / (self.batch_a_gpu * gpus)
        return {
            "gpus": gpus,
            **parts,
            "bottleneck": bottleneck.replace("_", "-"),
            "data_parallel": 2 * (gpus - 1) * gradients / self.nvlink if in_node else None,
            "epoch_minutes": steps * parts[bottleneck] / 60,
            "packing_minutes": self.images / (self.decoded_a_core * self.cores_a_gpu * gpus) / 60,
        }


def estimate(decoded_a_core: float) -> dict:
    """{"job": the numbers of the estimate, "rows": a `Job.row` for each number of GPUs}."""
    job = Job(
        flops_an_image=training_flops(lambda: ResNet36(650), COUNTED_IMAGES, 224) / COUNTED_IMAGES,
        parameters=count_parameters(without_weights(lambda: ResNet36(650))),
        decoded_a_core=decoded_a_core,
    )
    return {"job": vars(job), "rows": [job.row(gpus) for gpus in GPUS]}


def text(found: Mapping) -> str:
    """The estimate as a table, and the command that starts such a job."""
    job = Job(**found["job"])
    caption = (
        f"AN ESTIMATE, not measured: {job.images:,} images of 224 px an epoch, ResNet-36, bf16,"
        f" {job.batch_a_gpu} images a GPU.\nCounted: {job.flops_an_image / 1e9:.0f} GFLOP an image,"
        f" {4 * job.parameters / 1e6:.0f} MB of gradients; measured: {job.decoded_a_core:.0f}"
        f" images/s decoded by a core.\nAssumed: A100s that reach {job.share_of_peak:.0%} of"
        f" {job.gpu_peak / 1e12:.0f} TFLOP/s; links of {job.nvlink / 1e9:.0f} GB/s in a node of"
        f" {job.gpus_a_node}, {job.network / 1e9:.0f} between nodes; disks of"
        f" {job.disk / 1e9:.0f} GB/s; {job.cores_a_gpu} cores a GPU.\n"
        f"The packed cache takes {job.images * job.image_bytes / 1e9:.0f} GB. A step's parts in ms:"
    )
    in_ms = ("compute", "all_reduce", "reading", "data_parallel")
    rows = [
        row | {key: 1000 * row[key] for key in in_ms if row[key] is not None}
        for row in found["rows"]
    ]
    columns = {
        "GPUs": "{gpus}",
        "compute": "{compute:.0f}",
        "DDP's gradients": "{all_reduce:.1f}",
        "DataParallel's": "{data_parallel:.1f}",
        "reading": "{reading:.1f}",
        "bottleneck": "{bottleneck}",
        "min an epoch": "{epoch_minutes:.1f}",
        "min of packing": "{packing_minutes:.1f}",
    }
    command = (
        "torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500"
        "\n    problem3_resnet36.py 3.4 --data DIR --classes 650 --per-class 1281 --image-size 224"
    )
    return f"{table(caption, columns, rows)}On eight nodes, the same on each:\n  {command}\n"
